//! Disks of the tests' world: durable when a write completes, torn by sectors when its process is
//! killed before.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::LocalBoxFuture;
use holdfast_runtime::{Buffer, Directory, Disk, DiskError, DiskOptions, NodeId};

use super::world::World;

/// The bytes of one area.
pub(super) type AreaBytes = Rc<RefCell<Vec<u8>>>;

const SECTOR_BYTES: usize = 512;

pub(super) struct NodeDirectory {
    pub(super) world: Rc<World>,
    pub(super) node: NodeId,
}

impl Directory for NodeDirectory {
    fn open(
        &self,
        name: &str,
        options: DiskOptions,
    ) -> LocalBoxFuture<'static, Result<Rc<dyn Disk>, DiskError>> {
        assert!(
            options.durable_writes,
            "a write of this disk is durable when it completes"
        );
        let bytes = self.world.create_disk(self.node, name);
        let size = bytes.borrow().len().max(options.size_bytes as usize);
        bytes.borrow_mut().resize(size, 0);
        let disk: Rc<dyn Disk> = Rc::new(NodeDisk {
            world: self.world.clone(),
            bytes,
        });
        async move { Ok(disk) }.boxed_local()
    }

    fn exists(&self, name: &str) -> bool {
        self.world.has_disk(self.node, name)
    }

    fn remove(&self, name: &str) -> LocalBoxFuture<'static, Result<(), DiskError>> {
        self.world.remove_disk(self.node, name);
        async { Ok(()) }.boxed_local()
    }
}

struct NodeDisk {
    world: Rc<World>,
    bytes: AreaBytes,
}

impl Disk for NodeDisk {
    fn size_bytes(&self) -> u64 {
        self.bytes.borrow().len() as u64
    }

    fn read(&self, offset: u64, len: usize) -> LocalBoxFuture<'static, Result<Buffer, DiskError>> {
        let offset = offset as usize;
        let data = Buffer::padded_from(&self.bytes.borrow()[offset..offset + len]);
        async move { Ok(data) }.boxed_local()
    }

    fn write(&self, offset: u64, data: Buffer) -> LocalBoxFuture<'static, Result<(), DiskError>> {
        let delay = Duration::from_micros(50 + self.world.draw(1000));
        let mut write = Write {
            world: self.world.clone(),
            bytes: self.bytes.clone(),
            offset: offset as usize,
            data,
            done: false,
        };
        async move {
            write.world.sleep(delay).await;
            write.complete();
            Ok(())
        }
        .boxed_local()
    }

    fn sync(&self) -> LocalBoxFuture<'static, Result<(), DiskError>> {
        async { Ok(()) }.boxed_local()
    }
}

/// A write on its way; dropped before its end, it leaves any of its sectors behind.
struct Write {
    world: Rc<World>,
    bytes: AreaBytes,
    offset: usize,
    data: Buffer,
    done: bool,
}

impl Write {
    fn complete(&mut self) {
        self.world.note(&self.data);
        let range = self.offset..self.offset + self.data.len();
        self.bytes.borrow_mut()[range].copy_from_slice(&self.data);
        self.done = true;
    }
}

impl Drop for Write {
    fn drop(&mut self) {
        if self.done {
            return;
        }
        for start in (0..self.data.len()).step_by(SECTOR_BYTES) {
            if self.world.draw(2) == 0 {
                let target = self.offset + start..self.offset + start + SECTOR_BYTES;
                self.bytes.borrow_mut()[target]
                    .copy_from_slice(&self.data[start..start + SECTOR_BYTES]);
            }
        }
    }
}
