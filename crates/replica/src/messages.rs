//! Between wire messages and the store's records.

use bytes::{Bytes, BytesMut};
use holdfast_runtime::{Frame, PAGE_BYTES};
use holdfast_store::{Body, Copied, CopiedBlock, OperationId, Record};
use holdfast_wire::replica::{
    BlockVersion, RecordHeader, ReplicaNotice, ReplicaRefusal, ReplicaReply, ReplicaRequest,
    replica_notice, replica_request,
};
use holdfast_wire::{Seq, SliceKey, View};
use prost::Message;

/// Encodes a notice with its data.
pub fn notice(body: replica_notice::Body, payload: Bytes) -> Frame {
    Frame::with_payload(ReplicaNotice { body: Some(body) }.encode_to_vec(), payload)
}

/// Encodes a request with its data.
pub fn request(body: replica_request::Body, payload: Bytes) -> Frame {
    Frame::with_payload(ReplicaRequest { body: Some(body) }.encode_to_vec(), payload)
}

/// Encodes an answer with its data.
pub fn reply(reply: &ReplicaReply, payload: Bytes) -> Frame {
    Frame::with_payload(reply.encode_to_vec(), payload)
}

/// An answer that refuses.
pub fn refusal(refusal: ReplicaRefusal, promised: View) -> ReplicaReply {
    ReplicaReply {
        refusal: refusal as i32,
        promised: promised.0,
        ..ReplicaReply::default()
    }
}

/// Copied blocks as they travel: versions, and the data of those that have any.
pub fn versions(copied: Vec<CopiedBlock>) -> (Vec<BlockVersion>, Bytes) {
    let mut payload = BytesMut::new();
    let mut versions = Vec::with_capacity(copied.len());
    for copy in copied {
        versions.push(BlockVersion {
            block: copy.block,
            view: copy.view.0,
            seq: copy.seq.0,
            zero: copy.content == Copied::Zero,
            lost: copy.content == Copied::Lost,
        });
        if let Copied::Bytes(bytes) = copy.content {
            payload.extend_from_slice(&bytes);
        }
    }
    (versions, payload.freeze())
}

/// The header of a record.
pub fn header(record: &Record) -> RecordHeader {
    let (first_block, blocks, zero) = match &record.body {
        Body::Write { first_block, data } => {
            (*first_block, (data.len() / PAGE_BYTES) as u32, false)
        }
        Body::Zero {
            first_block,
            blocks,
        } => (*first_block, *blocks, true),
        Body::Nothing => (0, 0, true),
    };
    RecordHeader {
        view: record.view.0,
        seq: record.seq.0,
        origin: record.operation.origin,
        operation: record.operation.number,
        first_block,
        blocks,
        zero,
    }
}

/// The data of a record, empty unless it writes.
pub fn data(record: &Record) -> Bytes {
    match &record.body {
        Body::Write { data, .. } => data.clone(),
        Body::Zero { .. } | Body::Nothing => Bytes::new(),
    }
}

/// Rebuilds a record; `None` if the data does not fit the header.
pub fn record(slice: SliceKey, stable: Seq, header: &RecordHeader, data: Bytes) -> Option<Record> {
    let RecordHeader {
        first_block,
        blocks,
        ..
    } = *header;
    let body = match (header.zero, blocks) {
        (true, 0) => Body::Nothing,
        (true, _) => Body::Zero {
            first_block,
            blocks,
        },
        (false, _) => Body::Write {
            first_block,
            data: data.clone(),
        },
    };
    let wanted_bytes = if header.zero {
        0
    } else {
        blocks as usize * PAGE_BYTES
    };
    let operation = OperationId {
        origin: header.origin,
        number: header.operation,
    };
    let (view, seq) = (View(header.view), Seq(header.seq));
    (data.len() == wanted_bytes && (header.zero || blocks > 0) && seq.0 > 0).then_some(Record {
        slice,
        view,
        seq,
        stable,
        operation,
        body,
    })
}
