//! What kind of command it is: for reservations, for unit attentions, for bounds.

use crate::command::{Command, Extent};
use crate::reservation::Access;

impl Command {
    /// What the command does as far as persistent reservations care (SPC-4 table 63, SBC-3
    /// table 13). PERSISTENT RESERVE OUT and SPC-2 reservations have their own rules.
    pub fn access(&self) -> Access {
        match self {
            Self::TestUnitReady
            | Self::RequestSense { .. }
            | Self::Inquiry { .. }
            | Self::LogSense { .. }
            | Self::Reserve
            | Self::Release
            | Self::ReadCapacity10
            | Self::ReadCapacity16 { .. }
            | Self::ReportLuns { .. }
            | Self::PersistentIn { .. }
            | Self::PersistentOut { .. }
            | Self::ReportTargetPortGroups { .. } => Access::Free,
            Self::StartStop { start: true } | Self::PreventAllow { prevent: false } => Access::Free,
            Self::ModeSense { .. }
            | Self::GetLbaStatus { .. }
            | Self::Read(_)
            | Self::Verify { .. }
            | Self::Prefetch(_)
            | Self::ReadDefects { .. }
            | Self::CopyParameters { .. }
            | Self::CopyStatus { .. }
            | Self::ReportOpcodes { .. }
            | Self::ReportTaskManagement { .. } => Access::Read,
            Self::ModeSelect { .. }
            | Self::SendDiagnostic { .. }
            | Self::StartStop { start: false }
            | Self::PreventAllow { prevent: true }
            | Self::Write(_)
            | Self::WriteAtomic(_)
            | Self::OrWrite(_)
            | Self::ExtendedCopy { .. }
            | Self::WriteVerify { .. }
            | Self::SynchronizeCache(_)
            | Self::WriteSame { .. }
            | Self::Unmap { .. }
            | Self::SetTargetPortGroups { .. }
            | Self::CompareAndWrite(_) => Access::Write,
        }
    }

    /// Whether another nexus's SPC-2 reservation leaves the command alone (SPC-2 table 10).
    pub fn ignores_simple_reservation(&self) -> bool {
        matches!(
            self,
            Self::Inquiry { .. }
                | Self::LogSense { .. }
                | Self::ReportLuns { .. }
                | Self::RequestSense { .. }
                | Self::Release
                | Self::ReadCapacity10
                | Self::ReadCapacity16 { .. }
                | Self::PreventAllow { prevent: false }
        )
    }

    /// Whether the command runs although a unit attention is pending (SAM-5 5.14).
    pub fn ignores_attention(&self) -> bool {
        matches!(
            self,
            Self::Inquiry { .. } | Self::ReportLuns { .. } | Self::RequestSense { .. }
        )
    }

    /// The blocks of the medium that the command touches, if it names a range.
    pub fn extent(&self) -> Option<Extent> {
        match self {
            Self::Read(extent)
            | Self::Write(extent)
            | Self::WriteAtomic(extent)
            | Self::OrWrite(extent)
            | Self::WriteVerify { extent, .. }
            | Self::Verify { extent, .. }
            | Self::Prefetch(extent)
            | Self::SynchronizeCache(extent)
            | Self::WriteSame { extent, .. }
            | Self::CompareAndWrite(extent) => Some(*extent),
            Self::GetLbaStatus { block, .. } => Some(Extent {
                block: *block,
                blocks: 1,
            }),
            Self::TestUnitReady
            | Self::RequestSense { .. }
            | Self::Inquiry { .. }
            | Self::ModeSense { .. }
            | Self::ModeSelect { .. }
            | Self::LogSense { .. }
            | Self::SendDiagnostic { .. }
            | Self::Reserve
            | Self::Release
            | Self::StartStop { .. }
            | Self::PreventAllow { .. }
            | Self::ReadCapacity10
            | Self::ReadCapacity16 { .. }
            | Self::Unmap { .. }
            | Self::ReadDefects { .. }
            | Self::ExtendedCopy { .. }
            | Self::CopyParameters { .. }
            | Self::CopyStatus { .. }
            | Self::ReportLuns { .. }
            | Self::PersistentIn { .. }
            | Self::PersistentOut { .. }
            | Self::ReportTargetPortGroups { .. }
            | Self::SetTargetPortGroups { .. }
            | Self::ReportOpcodes { .. }
            | Self::ReportTaskManagement { .. } => None,
        }
    }
}
