//! Makes a golden image of the formats as they are: `golden FOLDER`. Older ones stay.

#![allow(clippy::disallowed_methods, reason = "a program of the host")]

use std::path::PathBuf;

use holdfast_store::testing::golden;

fn main() -> std::io::Result<()> {
    let folder = std::env::args().nth(1).map(PathBuf::from);
    let folder = folder.expect("the folder of golden images");
    let count = std::fs::read_dir(&folder)?.count();
    let path = folder.join(format!("{:03}.img", count + 1));
    let image = golden::image();
    std::fs::write(&path, &image)?;
    println!(
        "{}: {} bytes, {}",
        path.display(),
        image.len(),
        golden::formats()
    );
    Ok(())
}
