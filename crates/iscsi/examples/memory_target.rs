//! An iSCSI target with one volume in memory, for trying out initiators.
//!
//! ```text
//! cargo run -p holdfast-iscsi --example memory_target -- --port 3260 --size-mib 1024 \
//!     --chap-user alice --chap-secret alicealice12
//! iscsi-ls -s iscsi://alice%alicealice12@127.0.0.1:3260
//! ```
#![forbid(unsafe_code)]
#![allow(clippy::disallowed_methods, reason = "a program of its own, on a host")]

use std::net::SocketAddr;
use std::rc::Rc;

use anyhow::Context as _;
use clap::Parser;
use holdfast_iscsi::{Credentials, Limits, Target, TargetAuth, TargetSummary, Targets, serve};
use holdfast_scsi::{BlockDevice, DeviceIdentity, MemoryDevice};
use tokio::net::TcpListener;
use tokio::sync::watch;

const IQN: &str = "iqn.2026-01.io.holdfast:memory";

#[derive(Parser)]
struct Options {
    /// Port to listen on; 0 takes a free one and prints it.
    #[arg(long, default_value_t = 3260)]
    port: u16,
    /// Capacity of the volume in MiB.
    #[arg(long, default_value_t = 256)]
    size_mib: u64,
    /// Logical block size: 512 or 4096.
    #[arg(long, default_value_t = 512)]
    block_bytes: u32,
    /// Name by which initiators authenticate; without it nobody has to.
    #[arg(long, requires = "chap_secret")]
    chap_user: Option<String>,
    /// Secret of the initiators.
    #[arg(long)]
    chap_secret: Option<String>,
    /// Name by which the target authenticates itself.
    #[arg(long, requires_all = ["mutual_secret", "chap_user"])]
    mutual_user: Option<String>,
    /// Secret of the target.
    #[arg(long)]
    mutual_secret: Option<String>,
}

struct OneTarget {
    device: Rc<dyn BlockDevice>,
    auth: TargetAuth,
    address: SocketAddr,
}

impl Targets for OneTarget {
    fn list(&self, _initiator: &str) -> Vec<TargetSummary> {
        let portals = vec![format!("{},1", self.address)];
        vec![TargetSummary {
            iqn: IQN.to_owned(),
            portals,
        }]
    }

    fn open(&self, iqn: &str, _initiator: &str) -> Option<Target> {
        (iqn == IQN).then(|| Target {
            device: self.device.clone(),
            auth: self.auth.clone(),
            portal_group_tag: 1,
            relative_port_id: 1,
            port_groups: None,
            reservations: None,
        })
    }

    fn discovery_auth(&self) -> TargetAuth {
        self.auth.clone()
    }
}

fn auth(options: &Options) -> TargetAuth {
    let Some((username, secret)) = options.chap_user.clone().zip(options.chap_secret.clone())
    else {
        return TargetAuth::None;
    };
    let mutual = options
        .mutual_user
        .clone()
        .zip(options.mutual_secret.clone());
    let mutual = mutual.map(|(name, secret)| (name, secret.into()));
    TargetAuth::Chap(vec![Credentials {
        username,
        secret: secret.into(),
        mutual,
        number: 0,
    }])
}

fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_writer(std::io::stderr)
        .init();
    let options = Options::parse();
    anyhow::ensure!(
        matches!(options.block_bytes, 512 | 4096),
        "--block-bytes is 512 or 4096"
    );
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    tokio::task::LocalSet::new().block_on(&runtime, run(options))
}

async fn run(options: Options) -> anyhow::Result<()> {
    let listener = TcpListener::bind(("127.0.0.1", options.port))
        .await
        .with_context(|| format!("listening on port {}", options.port))?;
    let address = listener.local_addr()?;
    println!("iscsi://{address}/{IQN}/0");
    let device = Rc::new(MemoryDevice::new(DeviceIdentity {
        naa: *b"\x60\x00\x00\x00HOLDFASTMEM1",
        serial: "HOLDFASTMEM1".into(),
        vendor: "HOLDFAST".into(),
        product: "Memory".into(),
        revision: "0001".into(),
        logical_block_bytes: options.block_bytes,
        capacity_bytes: options.size_mib << 20,
    }));
    let targets = Rc::new(OneTarget {
        device,
        auth: auth(&options),
        address,
    });
    let (stop, shutdown) = watch::channel(false);
    tokio::task::spawn_local(async move {
        // Without a signal handler the process just runs until it is killed.
        if tokio::signal::ctrl_c().await.is_ok() {
            stop.send_replace(true);
        } else {
            std::future::pending::<()>().await;
        }
    });
    serve(listener, targets, Limits::default(), shutdown).await?;
    Ok(())
}
