//! Prints the latency of durable 4 KiB writes on each disk method.
//!
//! `cargo run -p holdfast-runtime --example disk_latency -- DIRECTORY`

use std::rc::Rc;

use holdfast_runtime::host::{self, DiskMethod, HostDirectory};
use holdfast_runtime::{Buffer, Directory, Disk, DiskOptions, Runtime};

const AREA_BYTES: u64 = 64 << 20;
const WRITES: u64 = 4000;

fn main() {
    let path = std::env::args()
        .nth(1)
        .expect("name a directory on the disk to measure");
    for method in [DiskMethod::IoUring, DiskMethod::Threads] {
        host::run(async |runtime| {
            let directory = HostDirectory::open_with(&path, method).expect("the directory opens");
            let options = DiskOptions {
                size_bytes: AREA_BYTES,
                durable_writes: true,
                allocation: holdfast_runtime::Allocation::Written,
            };
            let start = runtime.now();
            let disk = directory
                .open("latency", options)
                .await
                .expect("the area opens");
            println!(
                "{:?}: area of 64 MiB in {:?}",
                directory.disk_method(),
                runtime.now() - start
            );
            for depth in [1, 8, 32] {
                measure(&runtime, &disk, depth).await;
            }
            drop(disk);
            directory
                .remove("latency")
                .await
                .expect("the area can be removed");
        });
    }
}

async fn measure(runtime: &Runtime, disk: &Rc<dyn Disk>, depth: u64) {
    let start = runtime.now();
    let writers = (0..depth).map(|writer| async move {
        let mut page = Buffer::zeroed(4096);
        page[0] = writer as u8;
        for n in 0..WRITES / depth {
            let offset = (writer + n * depth) * 4096 % AREA_BYTES;
            disk.write(offset, page.clone())
                .await
                .expect("the write succeeds");
        }
    });
    futures::future::join_all(writers).await;
    let elapsed = runtime.now() - start;
    let writes = WRITES / depth * depth;
    println!(
        "  depth {depth:2}: {:7.1} us a write, {:8.0} writes a second",
        elapsed.as_secs_f64() * 1e6 * depth as f64 / writes as f64,
        writes as f64 / elapsed.as_secs_f64()
    );
}
