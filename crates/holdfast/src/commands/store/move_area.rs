//! `holdfast store move-journal` and `move-home`

use super::progress_bar;
use crate::cli::MoveArgs;
use crate::failure::Failure;
use crate::node::{Area, move_to};
use crate::output::{About, show};

pub(super) async fn run(area: Area, args: &MoveArgs) -> Result<(), Failure> {
    let bar = progress_bar();
    let moved = move_to(area, &args.data, &args.to, args.force, &|done, all| {
        bar.set_message("moving");
        bar.set_length(all);
        bar.set_position(done);
    })
    .await;
    bar.finish_and_clear();
    let moved = moved?;
    show(About::Change(&moved), &format!("{moved}\n"))
}
