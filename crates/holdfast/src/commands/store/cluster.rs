//! What a stopped node knows of its cluster: names and sizes of volumes, and which copies count.

use std::cell::RefCell;
use std::rc::Rc;

use futures::FutureExt;
use futures::future::LocalBoxFuture;
use holdfast_config::group::{GroupOptions, last_known_state};
use holdfast_config::state::{ClusterState, VolumeRecord};
use holdfast_runtime::{Allocation, Buffer, Directory, Disk, DiskError, DiskOptions};

use super::Looked;
use crate::failure::Failure;

const CONFIG_AREA: &str = "config";

impl Looked {
    /// The cluster's state as this node last knew it.
    async fn cluster(&self) -> Result<Rc<ClusterState>, String> {
        let node = self.known.as_ref().and_then(|known| known.node);
        let node = node.ok_or("the directory does not say which node it is")?;
        let copy = Copied::of(&*self.directory, CONFIG_AREA).await;
        let copy = copy.map_err(|error| error.to_string())?;
        last_known_state(Rc::new(copy), node, &GroupOptions::default())
            .await
            .map_err(|error| error.to_string())
    }

    /// The number of a volume that is given by name or number, and what is known of it.
    pub(super) async fn find_volume(
        &self,
        wanted: &str,
    ) -> Result<(u64, Option<VolumeRecord>), Failure> {
        let state = self.cluster().await;
        let found = state.as_ref().ok().and_then(|state| {
            let mut volumes = state.volumes.iter();
            volumes
                .find(|(id, record)| record.name == wanted || id.0.to_string() == wanted)
                .map(|(id, record)| (id.0, Some(record.clone())))
        });
        match (found, wanted.parse(), state) {
            (Some(found), _, _) => Ok(found),
            (None, Ok(number), _) => Ok((number, None)),
            (None, Err(_), Ok(state)) => {
                let known = state
                    .volumes
                    .iter()
                    .map(|(id, record)| format!("{} ({})", record.name, id.0));
                Err(Failure::Usage(format!(
                    "this node knows of no volume {wanted}; it knows {}",
                    known.collect::<Vec<_>>().join(", ")
                )))
            }
            (None, Err(_), Err(error)) => Err(Failure::Usage(format!(
                "the names of volumes cannot be read ({error}). Give the volume's number; \
                 `holdfast store dump DIR facts` lists those that this node has"
            ))),
        }
    }
}

/// One area, copied into memory: whatever is done to it is done to the copy.
#[derive(Clone)]
struct Copied {
    name: &'static str,
    bytes: Rc<RefCell<Vec<u8>>>,
}

impl Copied {
    async fn of(directory: &dyn Directory, name: &'static str) -> Result<Self, DiskError> {
        let as_it_is = DiskOptions {
            size_bytes: 0,
            durable_writes: false,
            allocation: Allocation::Sparse,
        };
        let disk = directory.open(name, as_it_is).await?;
        let bytes = disk.read(0, disk.size_bytes() as usize).await?;
        Ok(Self {
            name,
            bytes: Rc::new(RefCell::new(bytes.to_vec())),
        })
    }
}

impl Directory for Copied {
    fn open(
        &self,
        _name: &str,
        _options: DiskOptions,
    ) -> LocalBoxFuture<'static, Result<Rc<dyn Disk>, DiskError>> {
        let copy = self.clone();
        std::future::ready(Ok(Rc::new(copy) as Rc<dyn Disk>)).boxed_local()
    }

    fn exists(&self, name: &str) -> bool {
        name == self.name
    }

    fn remove(&self, _name: &str) -> LocalBoxFuture<'static, Result<(), DiskError>> {
        std::future::ready(Ok(())).boxed_local()
    }
}

impl Disk for Copied {
    fn size_bytes(&self) -> u64 {
        self.bytes.borrow().len() as u64
    }

    fn read(&self, offset: u64, len: usize) -> LocalBoxFuture<'static, Result<Buffer, DiskError>> {
        let bytes = self.bytes.borrow();
        let from = offset as usize;
        let read = match bytes.get(from..from + len) {
            Some(read) => Ok(Buffer::padded_from(read)),
            None => Err(DiskError::Io {
                name: self.name.to_owned(),
                operation: "read",
                offset,
                reason: "the file ends before that".into(),
            }),
        };
        std::future::ready(read).boxed_local()
    }

    fn write(&self, offset: u64, data: Buffer) -> LocalBoxFuture<'static, Result<(), DiskError>> {
        let from = offset as usize;
        if let Some(place) = self.bytes.borrow_mut().get_mut(from..from + data.len()) {
            place.copy_from_slice(&data);
        }
        std::future::ready(Ok(())).boxed_local()
    }

    fn sync(&self) -> LocalBoxFuture<'static, Result<(), DiskError>> {
        std::future::ready(Ok(())).boxed_local()
    }
}
