//! A volume as the SCSI layer sees it.

use std::cell::RefCell;
use std::rc::Rc;

use bytes::{Bytes, BytesMut};
use futures::FutureExt;
use futures::future::LocalBoxFuture;
use holdfast_config::state::VolumeRecord;
use holdfast_path::Requester;
use holdfast_scsi::{BlockDevice, CompareOutcome, DeviceError, DeviceIdentity, MappedExtent};
use holdfast_volume::{AccessError, IoError, Operation};
use holdfast_wire::VolumeId;
use holdfast_wire::mapped::MappedBytes;
use prost::Message;

use crate::node::Node;

/// See the module's header.
pub struct VolumeDevice {
    node: Rc<Node>,
    volume: VolumeId,
    identity: RefCell<DeviceIdentity>,
}

impl VolumeDevice {
    /// The volume behind an iSCSI target name.
    pub fn by_target(node: &Rc<Node>, target_name: &str) -> Option<Rc<Self>> {
        let state = node.state();
        let (volume, record) = state.volume_by_target(target_name)?;
        let identity = RefCell::new(identity(record));
        Some(Rc::new(Self {
            node: node.clone(),
            volume,
            identity,
        }))
    }

    fn run(
        &self,
        requester: Requester,
        offset: u64,
        length: u64,
        operation: Operation,
    ) -> impl Future<Output = Result<Bytes, AccessError>> + use<> {
        let (node, volume) = (self.node.clone(), self.volume);
        async move {
            node.run_as(&requester, volume, offset, length, operation)
                .await
        }
    }
}

fn identity(record: &VolumeRecord) -> DeviceIdentity {
    let serial: String = record
        .naa
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    DeviceIdentity {
        naa: record.naa,
        serial: serial.into(),
        vendor: "HOLDFAST".into(),
        product: "VOLUME".into(),
        revision: "0001".into(),
        logical_block_bytes: record.logical_block_bytes,
        capacity_bytes: record.size_bytes,
    }
}

fn failed(error: AccessError, offset: u64) -> DeviceError {
    let error = match error {
        AccessError::Reserved => return DeviceError::Reserved,
        AccessError::Io(error) => error,
    };
    match error {
        IoError::Busy => DeviceError::Busy,
        IoError::Unreachable => DeviceError::Unreachable,
        IoError::Unknown | IoError::PathEnded => DeviceError::Unknown,
        IoError::Full => DeviceError::Full,
        IoError::Damaged => DeviceError::Medium { offset },
        IoError::Gone => DeviceError::Gone,
        IoError::Invalid | IoError::Miscompare(_) => DeviceError::Internal,
    }
}

/// The runs of an owner's answer; `None` if it has none.
fn extents(answer: Bytes) -> Option<Vec<MappedExtent>> {
    let told = MappedBytes::decode(answer).ok()?;
    let mut mapped = told.first_mapped;
    let runs = told.lengths.into_iter().map(|length_bytes| {
        let run = MappedExtent {
            mapped,
            length_bytes,
        };
        mapped = !mapped;
        run
    });
    let runs: Vec<_> = runs.collect();
    (!runs.is_empty()).then_some(runs)
}

impl BlockDevice for VolumeDevice {
    fn identity(&self) -> DeviceIdentity {
        let state = self.node.state();
        if let Some(record) = state.volumes.get(&self.volume) {
            self.identity.borrow_mut().capacity_bytes = record.size_bytes;
        }
        self.identity.borrow().clone()
    }

    fn read(
        &self,
        requester: Requester,
        offset_bytes: u64,
        length_bytes: u32,
    ) -> LocalBoxFuture<'static, Result<Bytes, DeviceError>> {
        let read = self.run(
            requester,
            offset_bytes,
            u64::from(length_bytes),
            Operation::Read,
        );
        async move { read.await.map_err(|error| failed(error, offset_bytes)) }.boxed_local()
    }

    fn write(
        &self,
        requester: Requester,
        offset_bytes: u64,
        data: Bytes,
    ) -> LocalBoxFuture<'static, Result<(), DeviceError>> {
        let length = data.len() as u64;
        let write = self.run(requester, offset_bytes, length, Operation::Write(data));
        async move {
            write
                .await
                .map(drop)
                .map_err(|error| failed(error, offset_bytes))
        }
        .boxed_local()
    }

    fn zero(
        &self,
        requester: Requester,
        offset_bytes: u64,
        length_bytes: u64,
    ) -> LocalBoxFuture<'static, Result<(), DeviceError>> {
        let zero = self.run(requester, offset_bytes, length_bytes, Operation::Zero);
        async move {
            zero.await
                .map(drop)
                .map_err(|error| failed(error, offset_bytes))
        }
        .boxed_local()
    }

    fn flush(&self) -> LocalBoxFuture<'static, Result<(), DeviceError>> {
        // An acknowledged write is durable on every in-sync copy already.
        async { Ok(()) }.boxed_local()
    }

    /// How full the home of this node is: that of the copies may differ.
    fn available_percent(&self) -> Option<u8> {
        let usage = self.node.context().store.usage();
        let free_bytes = usage.home_bytes.saturating_sub(usage.home_used_bytes);
        let percent = (u128::from(free_bytes) * 100).checked_div(u128::from(usage.home_bytes));
        Some(percent.map_or(0, |percent| percent.min(100) as u8))
    }

    fn mapped_extents(
        &self,
        requester: Requester,
        offset_bytes: u64,
        length_bytes: u64,
    ) -> LocalBoxFuture<'static, Result<Vec<MappedExtent>, DeviceError>> {
        let map = self.run(requester, offset_bytes, length_bytes, Operation::Map);
        async move {
            let answer = map.await.map_err(|error| failed(error, offset_bytes))?;
            extents(answer).ok_or(DeviceError::Busy)
        }
        .boxed_local()
    }

    fn compare_and_write(
        &self,
        requester: Requester,
        offset_bytes: u64,
        compare: Bytes,
        write: Bytes,
    ) -> LocalBoxFuture<'static, Result<CompareOutcome, DeviceError>> {
        let length = compare.len() as u64;
        let mut both = BytesMut::from(compare.as_ref());
        both.extend_from_slice(&write);
        let run = self.run(
            requester,
            offset_bytes,
            length,
            Operation::CompareAndWrite(both.freeze()),
        );
        async move {
            match run.await {
                Ok(_) => Ok(CompareOutcome::Written),
                Err(AccessError::Io(IoError::Miscompare(at))) => Ok(CompareOutcome::Miscompare {
                    offset_bytes: at as u32,
                }),
                Err(error) => Err(failed(error, offset_bytes)),
            }
        }
        .boxed_local()
    }
}
