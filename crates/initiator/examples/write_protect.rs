//! Sets or clears the bit SWP of a disk's Control mode page (SPC-4 7.5.8) at one portal.
//!
//! ```text
//! CHAP_SECRET=… cargo run -p holdfast-initiator --example write_protect -- \
//!     --portal 127.0.0.1:3260 --target iqn.2026-11.example:disk --chap-user user on
//! ```
#![allow(
    clippy::disallowed_methods,
    reason = "a program of its own, outside the simulator"
)]

use std::net::SocketAddr;

use anyhow::Context as _;
use bytes::Bytes;
use clap::{Parser, ValueEnum};
use holdfast_initiator::{Chap, Command, Secret, Session, SessionOptions, Transfer};

/// Makes a disk read-only by software, or writable again.
#[derive(Parser)]
struct Arguments {
    #[arg(long)]
    portal: SocketAddr,
    #[arg(long)]
    target: String,
    #[arg(long, default_value_t = 0)]
    lun: u16,
    /// CHAP user; the secret comes from the environment variable CHAP_SECRET.
    #[arg(long)]
    chap_user: Option<String>,
    state: State,
}

#[derive(Clone, Copy, ValueEnum)]
enum State {
    On,
    Off,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    tokio::task::LocalSet::new().block_on(&runtime, run(arguments))
}

async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let mut options = SessionOptions::new("iqn.2026-11.io.holdfast:write-protect");
    if let Some(user) = &arguments.chap_user {
        let secret = std::env::var("CHAP_SECRET").context("CHAP_SECRET is not set")?;
        options.chap = Some(Chap::new(user, Secret::new(secret)));
    }
    let session = Session::connect(arguments.portal, &arguments.target, &options).await?;
    session.clear_attentions(arguments.lun).await?;
    // Header, then the Control page as it is by default: one task set for each nexus, commands
    // in any order, and the bit.
    let bit = match arguments.state {
        State::On => 0x08,
        State::Off => 0,
    };
    let list = [0, 0, 0, 0, 0x0a, 10, 0x20, 0x10, bit, 0, 0, 0, 0, 0, 0, 0];
    let mut cdb = [0; 16];
    // MODE SELECT(6) with PF.
    (cdb[0], cdb[1], cdb[4]) = (0x15, 0x10, list.len() as u8);
    let transfer = Transfer::Write(Bytes::copy_from_slice(&list));
    let command = Command {
        lun: arguments.lun,
        cdb,
        transfer,
    };
    session.execute(command).await?;
    session.logout().await?;
    Ok(())
}
