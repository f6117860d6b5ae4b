//! Asymmetric access: a host has another group made active/optimized, and who is told of it.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use bytes::Bytes;
use futures::executor::block_on;
use futures::future::LocalBoxFuture;
use holdfast_path::Path;
use holdfast_scsi::reservation::LocalReservations;
use holdfast_scsi::{
    AccessState, Admission, Attachment, Completion, DeviceIdentity, LogicalUnit, MemoryDevice,
    Nexus, NotOptimized, PortGroup, PortGroups, Status, TargetPort,
};

/// Two nodes, of which one owns the volume; it moves if it may.
struct TwoNodes {
    owner: Cell<u16>,
    may_move: Cell<bool>,
    /// Another command of any nexus, which comes while the volume moves.
    meanwhile: RefCell<Option<Box<dyn FnOnce()>>>,
}

impl PortGroups for TwoNodes {
    fn groups(&self) -> Vec<PortGroup> {
        let group = |id| PortGroup {
            id,
            state: self.state(id),
            preferred: false,
            ports: vec![id],
        };
        vec![group(1), group(2)]
    }

    fn state(&self, group: u16) -> AccessState {
        if self.owner.get() == group {
            AccessState::Optimized
        } else {
            AccessState::NonOptimized
        }
    }

    fn fingerprint(&self) -> u64 {
        u64::from(self.owner.get())
    }

    fn optimize(&self, group: u16) -> LocalBoxFuture<'static, Result<(), NotOptimized>> {
        if !self.may_move.get() {
            return Box::pin(std::future::ready(Err(NotOptimized)));
        }
        self.owner.set(group);
        let meanwhile = self.meanwhile.borrow_mut().take();
        Box::pin(async move {
            if let Some(meanwhile) = meanwhile {
                meanwhile();
            }
            Ok(())
        })
    }
}

/// The nodes, and two initiators at node 1 whose first attentions have been taken.
fn bench() -> (Rc<TwoNodes>, [Attachment; 2]) {
    let nodes = Rc::new(TwoNodes {
        owner: Cell::new(1),
        may_move: Cell::new(true),
        meanwhile: RefCell::default(),
    });
    let unit = LogicalUnit::new(Rc::new(LocalReservations::default()));
    let attached = ["a", "b"].map(|name| {
        let attachment = attach(&unit, &nodes, name);
        assert_eq!(sense(&run(&attachment, &[0], &[])), (6, 0x29, 0));
        attachment
    });
    (nodes, attached)
}

fn attach(unit: &Rc<LogicalUnit>, nodes: &Rc<TwoNodes>, name: &str) -> Attachment {
    let nexus = Nexus {
        initiator: name.into(),
        isid: [0; 6],
        target_port: 1,
    };
    let port = TargetPort {
        target: "iqn.t".into(),
        group: 1,
        relative_id: 1,
        groups: nodes.clone(),
    };
    let device = Rc::new(MemoryDevice::new(DeviceIdentity {
        naa: [0x60; 16],
        serial: "1".into(),
        vendor: "HOLDFAST".into(),
        product: "Volume".into(),
        revision: "1".into(),
        logical_block_bytes: 512,
        capacity_bytes: 1 << 20,
    }));
    unit.attach(nexus, device, port, Path::own())
}

fn run(attachment: &Attachment, cdb: &[u8], data: &[u8]) -> Completion {
    let mut padded = [0; 16];
    padded[..cdb.len()].copy_from_slice(cdb);
    match attachment.admit(0, &padded) {
        Admission::Done(completion) => completion,
        Admission::Run {
            command, data_out, ..
        } => {
            assert_eq!(data_out.bytes(), data.len() as u64);
            block_on(attachment.execute(command, Bytes::copy_from_slice(data))).expect("an outcome")
        }
    }
}

fn set(attachment: &Attachment, list: &[u8]) -> Completion {
    let cdb = [0xa4, 0x0a, 0, 0, 0, 0, 0, 0, 0, list.len() as u8];
    run(attachment, &cdb, list)
}

fn sense(completion: &Completion) -> (u8, u8, u8) {
    assert_eq!(completion.status, Status::CheckCondition, "{completion:?}");
    let sense = &completion.sense;
    (sense[2] & 0x0f, sense[12], sense[13])
}

/// States of the two groups, as reported.
fn reported(attachment: &Attachment) -> [u8; 2] {
    let report = run(attachment, &[0xa3, 0x0a, 0, 0, 0, 0, 0, 0, 1, 0], &[]);
    assert_eq!(report.status, Status::Good);
    [report.data[4] & 0x0f, report.data[16] & 0x0f]
}

const GROUP_2: [u8; 8] = [0, 0, 0, 0, 0, 0, 0, 2];

#[test]
fn the_unit_says_that_access_is_implicit_and_explicit_and_lists_the_command() {
    let (_, [host, _]) = bench();
    let inquiry = run(&host, &[0x12, 0, 0, 0, 255], &[]);
    assert_eq!(inquiry.data[5] >> 4 & 3, 0b11, "TPGS");
    let supported = run(&host, &[0xa3, 0x0c, 3, 0xa4, 0, 0x0a, 0, 0, 1, 0], &[]);
    assert_eq!(supported.data[1] & 7, 3, "supported as the standard says");
    assert_eq!(supported.data[4..6], [0xa4, 0x0a]);
    let other_action = run(&host, &[0xa4, 0x0b], &[]);
    assert_eq!(sense(&other_action), (5, 0x24, 0));
}

#[test]
fn the_asked_for_group_is_optimized_and_every_other_nexus_is_told_once() {
    let (_, [host, other]) = bench();
    assert_eq!(reported(&host), [0, 1]);
    assert_eq!(set(&host, &GROUP_2).status, Status::Good);
    assert_eq!(sense(&run(&other, &[0], &[])), (6, 0x2a, 0x06));
    assert_eq!(run(&other, &[0], &[]).status, Status::Good);
    assert_eq!(reported(&host), [1, 0], "and nothing is pending here");
    // As it is already: nobody is told of anything.
    assert_eq!(set(&host, &GROUP_2).status, Status::Good);
    assert_eq!(run(&other, &[0], &[]).status, Status::Good);
}

#[test]
fn commands_of_the_asking_nexus_meanwhile_do_not_tell_it_either() {
    let (nodes, [host, other]) = bench();
    let (again, watching) = (host.clone(), other.clone());
    *nodes.meanwhile.borrow_mut() = Some(Box::new(move || {
        assert_eq!(run(&again, &[0], &[]).status, Status::Good);
        assert_eq!(sense(&run(&watching, &[0], &[])), (6, 0x2a, 0x06));
    }));
    assert_eq!(set(&host, &GROUP_2).status, Status::Good);
    assert_eq!(run(&host, &[0], &[]).status, Status::Good);
    assert_eq!(run(&other, &[0], &[]).status, Status::Good);
}

#[test]
fn a_change_that_nobody_asked_for_is_told_to_everybody_but_not_to_whom_it_found_absent() {
    let (nodes, hosts) = bench();
    nodes.owner.set(2);
    for host in &hosts {
        assert_eq!(sense(&run(host, &[0], &[])), (6, 0x2a, 0x06));
        assert_eq!(run(host, &[0], &[]).status, Status::Good);
    }
    let unit = hosts[0].unit().clone();
    nodes.owner.set(1);
    let newcomer = attach(&unit, &nodes, "c");
    assert_eq!(sense(&run(&newcomer, &[0], &[])), (6, 0x29, 0));
    assert_eq!(run(&newcomer, &[0], &[]).status, Status::Good);
    assert_eq!(sense(&run(&hosts[0], &[0], &[])), (6, 0x2a, 0x06));
}

#[test]
fn what_cannot_be_done_and_what_makes_no_sense_fail_differently_and_change_nothing() {
    let (nodes, [host, other]) = bench();
    nodes.may_move.set(false);
    assert_eq!(sense(&set(&host, &GROUP_2)), (4, 0x67, 0x0a));
    nodes.may_move.set(true);
    let standby = set(&host, &[0, 0, 0, 0, 2, 0, 0, 2]);
    assert_eq!(sense(&standby), (5, 0x26, 0));
    assert_eq!(standby.sense[15..18], [0x80, 0, 4], "the state's byte");
    assert_eq!(sense(&set(&host, &GROUP_2[..7])), (5, 0x1a, 0));
    assert_eq!(set(&host, &[]).status, Status::Good);
    assert_eq!(set(&host, &[0; 4]).status, Status::Good);
    let endless = run(&host, &[0xa4, 0x0a, 0, 0, 0, 0, 1, 0, 0, 0], &[]);
    assert_eq!(sense(&endless), (5, 0x1a, 0));
    assert_eq!(
        run(&other, &[0], &[]).status,
        Status::Good,
        "nobody is told"
    );
    assert_eq!(reported(&host), [0, 1]);
}

#[test]
fn a_reservation_keeps_others_from_moving_the_volume() {
    let (_, [host, other]) = bench();
    assert_eq!(run(&other, &[0x16], &[]).status, Status::Good);
    assert_eq!(set(&host, &GROUP_2).status, Status::ReservationConflict);
    assert_eq!(set(&other, &GROUP_2).status, Status::Good);
}
