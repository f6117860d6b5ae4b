//! The steps of the test, in their order.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};

use super::machine::Machine;
use crate::cluster::{Killed, NewVolume, NodeProcess, ServedDemo};
use crate::processes::{self, Signal};

type Step = fn(&mut Scenario) -> anyhow::Result<String>;

/// Each step's name, and what does it; it answers what it has seen.
pub(crate) const STEPS: [(&str, Step); 20] = [
    ("SendTargets at every portal", Scenario::discovery),
    ("wrong secrets are refused", Scenario::wrong_secrets),
    ("one path: the owner is killed", Scenario::single_path_owner),
    (
        "one path: its portal is killed",
        Scenario::single_path_portal,
    ),
    (
        "one path: files and filesystem",
        Scenario::single_path_check,
    ),
    ("ext4: two paths, CHAP", Scenario::ext4_begin),
    ("ext4: the owner is killed", Scenario::ext4_kill),
    ("ext4: the volume grows", Scenario::ext4_grow),
    ("ext4: fstrim", Scenario::trim),
    ("ext4: files and filesystem", Scenario::ext4_end),
    ("xfs: five paths, mutual CHAP", Scenario::xfs_begin),
    ("xfs: the owner is killed", Scenario::xfs_kill),
    ("xfs: the owner falls silent", Scenario::xfs_silence),
    ("xfs: the portal in use pauses", Scenario::xfs_pause),
    ("xfs: the owner is stopped", Scenario::xfs_stop),
    ("xfs: the volume is moved", Scenario::xfs_move),
    ("xfs: the volume grows", Scenario::xfs_grow),
    ("xfs: fstrim", Scenario::trim),
    ("xfs: files and filesystem", Scenario::xfs_end),
    ("nothing is left behind", Scenario::end),
];

/// A question that the guest answers at once.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);
/// Logins, filesystems and their checks, on an emulated processor.
const WORK_LIMIT: Duration = Duration::from_secs(120);
/// How long load may stand still, in seconds. More than iSCSI and dm-multipath ever need with the
/// timeouts of this test: a write that hangs for ever must not pass for a slow one.
const LOAD_LIMIT_S: u64 = 60;
/// Files of 1 MiB of a load.
const FILES: u32 = 48;
/// Files written before and after a kill.
const STRETCH: u32 = 12;

/// Files of the load that overwrites while a portal's node stands still: few, so that what was
/// under way there has been overwritten many times when the node wakes.
const FILES_OVERWRITTEN: u32 = 6;
/// How long it stands still; long after its path was given up.
const PAUSE: Duration = Duration::from_secs(20);

/// Timeouts for a session whose commands nobody else can take over: wait for its portal.
const PATIENT: (u32, u32, u32) = (120, 5, 5);
/// Timeouts for one path of several: notice soon. (The first one is multipathd's to set.)
const ONE_OF_SEVERAL: (u32, u32, u32) = (120, 2, 3);
/// How long multipathd lets a lost session try to come back before another path gets its I/O. Two
/// values, because the time that I/O stands still is this and little else.
const RECOVERY_LONG_S: u32 = 5;
const RECOVERY_SHORT_S: u32 = 1;

/// A file that is written, deleted and trimmed. More than the journals hold, so that a good part
/// of it has reached the place that is to be given back; at least one of three copies.
const BALLAST_MIB: u64 = 128;
const MIB: u64 = 1 << 20;
/// Until the nodes have moved what is in their journals.
const TRIM_LIMIT: Duration = Duration::from_secs(10);

/// What no kill explains: filesystems and the devices below them must not notice.
const COMPLAINTS: &str = "EXT4-fs (error|warning)|JBD2: .*rror|XFS .*([Ee]rror|[Cc]orrupt|hut)|\
    error, dev dm-|Buffer I/O error|lost (async |sync )?page write|blocked for more than|BUG:|\
    Call Trace|Oops";
/// A single session that outlasts everything makes no error of the disk either.
const COMPLAINTS_OF_DISKS: &str = "I/O error, dev sd|rejecting I/O to offline";

const SINGLE: &str = "linux-single";
const EXT4: &str = "linux-ext4";
const XFS: &str = "linux-xfs";

/// The cluster, the guest, and what is under way between them.
pub(crate) struct Scenario {
    demo: ServedDemo,
    pub(crate) machine: Machine,
    single: NewVolume,
    ext4: NewVolume,
    xfs: NewVolume,
    mounted: Option<Mounted>,
}

/// A filesystem of the guest.
struct Mounted {
    kind: &'static str,
    device: String,
    directory: &'static str,
}

impl Scenario {
    pub(crate) fn new(demo: ServedDemo, machine: Machine) -> anyhow::Result<Self> {
        Ok(Self {
            single: demo.create_volume(SINGLE, "512MiB", false)?,
            ext4: demo.create_volume(EXT4, "1GiB", false)?,
            xfs: demo.create_volume(XFS, "1GiB", true)?,
            demo,
            machine,
            mounted: None,
        })
    }

    fn discovery(&mut self) -> anyhow::Result<String> {
        for portal in &self.single.portals {
            for volume in [&self.single, &self.ext4, &self.xfs] {
                let discover = format!("discover {portal} {}", volume.iqn);
                let said = self.machine.run(&discover, ANSWER_LIMIT)?;
                for other in &volume.portals {
                    ensure!(
                        said.contains(other.as_str()),
                        "{portal} names no {other}:\n{said}"
                    );
                }
            }
        }
        Ok(format!(
            "{} portals name 3 targets each",
            self.single.portals.len()
        ))
    }

    fn wrong_secrets(&mut self) -> anyhow::Result<String> {
        let single = self.single.clone();
        let portal = &single.portals[0];
        self.configure(&single, Some("wrong-secret-16b"), None, PATIENT)?;
        let refused = format!("login_refused {} {portal}", single.iqn);
        self.machine.run(&refused, WORK_LIMIT)?;
        let xfs = self.xfs.clone();
        self.configure(&xfs, None, Some("wrong-secret-16b"), PATIENT)?;
        let mutual = format!("! login {} {portal}", xfs.iqn);
        let said = self.machine.run(&mutual, WORK_LIMIT)?;
        // 19 is the initiator's own refusal; if the target refused, it would be 24.
        let own = said.contains("initiator reported error (19 ");
        ensure!(own, "the initiator did not refuse the target:\n{said}");
        Ok("by the target (24), and by the initiator a wrong proof of the target (19)".to_owned())
    }

    fn single_path_owner(&mut self) -> anyhow::Result<String> {
        let volume = self.single.clone();
        self.configure(&volume, None, None, PATIENT)?;
        let (owner, owner_portal) = self.demo.owner_of(&volume.name)?;
        let mut portals = volume.portals.iter();
        let living = portals.find(|portal| **portal != owner_portal);
        let living = living.context("a portal of another node")?.clone();
        self.login(&volume, &[living])?;
        let command = format!("single_disk {}", volume.iqn);
        let device = self.machine.run(&command, WORK_LIMIT)?.trim().to_owned();
        self.begin_load("ext4", device, "/single")?;
        let killed = self.kill_under_load(&owner)?;
        let note = self.end_load()?;
        self.demo.start_again(&killed)?;
        self.demo.wait_until_whole(&volume.name)?;
        Ok(note)
    }

    /// The session goes to the owner now, so both the path and the order of I/O break at once.
    fn single_path_portal(&mut self) -> anyhow::Result<String> {
        let volume = self.single.clone();
        let portal = self.portal_in_use(&volume)?;
        let node = self.demo.process_at(&portal)?;
        self.start_load()?;
        let killed = self.demo.kill(&node)?;
        // As long as a supervisor would take to notice and start it.
        std::thread::sleep(Duration::from_secs(3));
        self.demo.start_again(&killed)?;
        self.reach()?;
        let note = self.end_load()?;
        let logged_in = format!("wait_for 20 logged_in {} 1", volume.iqn);
        self.machine.run(&logged_in, ANSWER_LIMIT)?;
        self.demo.wait_until_whole(&volume.name)?;
        Ok(format!("started again after 3 s; {note}"))
    }

    fn single_path_check(&mut self) -> anyhow::Result<String> {
        let volume = self.single.clone();
        let note = self.verify_and_check()?;
        self.no_complaints(&format!("{COMPLAINTS}|{COMPLAINTS_OF_DISKS}"))?;
        self.logout(&volume)?;
        self.machine.run("start_multipath", WORK_LIMIT)?;
        Ok(note)
    }

    fn ext4_begin(&mut self) -> anyhow::Result<String> {
        let volume = self.ext4.clone();
        // One path goes to the owner, so that its death takes a path away, too.
        let (_, owner) = self.demo.owner_of(&volume.name)?;
        let mut portals = volume.portals.iter();
        let other = portals.find(|portal| **portal != owner);
        let other = other.context("a portal of another node")?.clone();
        self.begin_on_paths("ext4", &volume, &[owner, other], RECOVERY_LONG_S)
    }

    fn ext4_kill(&mut self) -> anyhow::Result<String> {
        let volume = self.ext4.clone();
        self.kill_owner_of_paths(&volume, 2)
    }

    /// From less than one slice of the volume into the next.
    fn ext4_grow(&mut self) -> anyhow::Result<String> {
        let volume = self.ext4.clone();
        self.grow(&volume, "+512MiB")
    }

    fn ext4_end(&mut self) -> anyhow::Result<String> {
        let volume = self.ext4.clone();
        self.end_on_paths(&volume)
    }

    fn xfs_begin(&mut self) -> anyhow::Result<String> {
        let volume = self.xfs.clone();
        self.begin_on_paths("xfs", &volume, &volume.portals, RECOVERY_SHORT_S)
    }

    fn xfs_kill(&mut self) -> anyhow::Result<String> {
        let volume = self.xfs.clone();
        let note = self.kill_owner_of_paths(&volume, volume.portals.len())?;
        let followed = self.follows_owner(&volume)?;
        Ok(format!("{note}; {followed}"))
    }

    /// No connection is closed and nothing answers: a machine that lost its network, say.
    fn xfs_silence(&mut self) -> anyhow::Result<String> {
        let volume = self.xfs.clone();
        self.start_load()?;
        let (owner, _) = self.demo.owner_of(&volume.name)?;
        processes::signal(owner.pid, Signal::STOP)?;
        let reached = self.reach();
        // Whatever came of it: a node that stands still does not end with the demo.
        processes::signal(owner.pid, Signal::CONT)?;
        reached?;
        let note = self.end_load()?;
        self.demo.wait_until_whole(&volume.name)?;
        let paths = volume.portals.len();
        let all = format!("wait_for 60 has_active_paths {} {paths}", volume.iqn);
        self.machine.run(&all, WORK_LIMIT)?;
        Ok(note)
    }

    /// The node behind the path in use stands still; the kernel gives the path up, repeats
    /// elsewhere and overwrites. The load ends before the node wakes, so nothing hides what lands
    /// late.
    fn xfs_pause(&mut self) -> anyhow::Result<String> {
        let volume = self.xfs.clone();
        self.follows_owner(&volume)?;
        self.start_load_of(FILES_OVERWRITTEN)?;
        let (owner, _) = self.demo.owner_of(&volume.name)?;
        processes::signal(owner.pid, Signal::STOP)?;
        let begin = Instant::now();
        let ended = self.reach().and_then(|()| {
            // Writers go on for as long as the node stands still.
            std::thread::sleep(PAUSE.saturating_sub(begin.elapsed()));
            self.end_load()
        });
        processes::signal(owner.pid, Signal::CONT)?;
        let note = ended?;
        self.demo.wait_until_whole(&volume.name)?;
        let paths = volume.portals.len();
        let all = format!("wait_for 60 has_active_paths {} {paths}", volume.iqn);
        self.machine.run(&all, WORK_LIMIT)?;
        let right = self.machine.run("verify", WORK_LIMIT)?;
        Ok(format!(
            "{note}; {} checksums right, 0 differences",
            right.trim()
        ))
    }

    /// SIGTERM: the target asks for a logout, then its volumes go to other nodes.
    fn xfs_stop(&mut self) -> anyhow::Result<String> {
        let volume = self.xfs.clone();
        self.start_load()?;
        let (owner, _) = self.demo.owner_of(&volume.name)?;
        let stopped = self.demo.stop(&owner)?;
        self.reach()?;
        let note = self.end_load()?;
        self.demo.start_again(&stopped)?;
        self.demo.wait_until_whole(&volume.name)?;
        let paths = volume.portals.len();
        let all = format!("wait_for 60 has_active_paths {} {paths}", volume.iqn);
        self.machine.run(&all, WORK_LIMIT)?;
        Ok(note)
    }

    /// Every path stays; the kernel is told by unit attention which one is the owner's now.
    fn xfs_move(&mut self) -> anyhow::Result<String> {
        let volume = self.xfs.clone();
        self.start_load()?;
        self.demo.move_elsewhere(&volume.name)?;
        self.reach()?;
        let followed = self.follows_owner(&volume)?;
        let note = self.end_load()?;
        Ok(format!("{note}; {followed}"))
    }

    fn xfs_grow(&mut self) -> anyhow::Result<String> {
        let volume = self.xfs.clone();
        self.grow(&volume, "+1GiB")
    }

    /// Everything from the volume to the mounted filesystem becomes larger under load.
    fn grow(&mut self, volume: &NewVolume, size: &str) -> anyhow::Result<String> {
        self.start_load()?;
        let bytes = self.demo.resize(&volume.name, size)?;
        let mounted = self.mounted.as_ref().context("a mounted filesystem")?;
        let command = format!(
            "grow {} {} {bytes} {} {}",
            volume.iqn, mounted.device, mounted.kind, mounted.directory
        );
        let said = self.machine.run(&command, WORK_LIMIT)?;
        self.reach()?;
        let note = self.end_load()?;
        Ok(format!("KiB before and after: {}; {note}", said.trim()))
    }

    fn xfs_end(&mut self) -> anyhow::Result<String> {
        let volume = self.xfs.clone();
        self.end_on_paths(&volume)
    }

    fn end(&mut self) -> anyhow::Result<String> {
        self.no_complaints(COMPLAINTS)?;
        let judge = format!("complain && ! kernel_complaints '{COMPLAINTS}'");
        self.machine.run(&judge, ANSWER_LIMIT)?;
        let left = self.machine.run("sessions", ANSWER_LIMIT)?;
        ensure!(left.is_empty(), "sessions are left:\n{left}");
        let refused = "dmesg | grep -c 'stpg failed' || true";
        let refused = self.machine.run(refused, ANSWER_LIMIT)?;
        Ok(format!(
            "no session, no complaint of the kernel; refused its wish for another owner {} times",
            refused.trim()
        ))
    }

    fn begin_on_paths(
        &mut self,
        kind: &'static str,
        volume: &NewVolume,
        portals: &[String],
        recovery_s: u32,
    ) -> anyhow::Result<String> {
        self.configure(volume, None, None, ONE_OF_SEVERAL)?;
        let recovery = format!("give_up_after {recovery_s}");
        self.machine.run(&recovery, ANSWER_LIMIT)?;
        self.login(volume, portals)?;
        let command = format!("multipath_disk {} {}", volume.iqn, portals.len());
        let device = self.machine.run(&command, WORK_LIMIT)?.trim().to_owned();
        let followed = self.follows_owner(volume)?;
        let gives_up = format!("wait_for 10 gives_up_after {recovery_s}");
        self.machine.run(&gives_up, ANSWER_LIMIT)?;
        let discard = format!("discard_reads_zero {device}");
        self.machine.run(&discard, WORK_LIMIT)?;
        self.begin_load(kind, device, "/paths")?;
        Ok(format!(
            "{followed}; a lost path is given up after {recovery_s} s"
        ))
    }

    /// The path in use is the one to the node that orders the I/O.
    fn follows_owner(&mut self, volume: &NewVolume) -> anyhow::Result<String> {
        let (_, owner) = self.demo.owner_of(&volume.name)?;
        let command = format!(
            "wait_for 30 sends_to {} {owner} || cat /run/topology",
            volume.iqn
        );
        let topology = self.machine.run(&command, WORK_LIMIT)?;
        ensure!(
            topology.is_empty(),
            "I/O does not go to the owner at {owner}:\n{topology}"
        );
        Ok(format!("I/O goes to the owner, {owner}"))
    }

    fn kill_owner_of_paths(&mut self, volume: &NewVolume, paths: usize) -> anyhow::Result<String> {
        let (owner, _) = self.demo.owner_of(&volume.name)?;
        let killed = self.kill_under_load(&owner)?;
        let note = self.end_load()?;
        self.demo.start_again(&killed)?;
        self.demo.wait_until_whole(&volume.name)?;
        let all = format!("wait_for 60 has_active_paths {} {paths}", volume.iqn);
        self.machine.run(&all, WORK_LIMIT)?;
        Ok(format!("{note}; all paths are back"))
    }

    fn end_on_paths(&mut self, volume: &NewVolume) -> anyhow::Result<String> {
        let note = self.verify_and_check()?;
        self.no_complaints(COMPLAINTS)?;
        self.machine.run("multipath -F", ANSWER_LIMIT)?;
        self.logout(volume)?;
        Ok(note)
    }

    /// CHAP and timeouts of a target's records, with secrets to replace the right ones.
    fn configure(
        &mut self,
        volume: &NewVolume,
        secret: Option<&str>,
        target_secret: Option<&str>,
        (replacement, interval, timeout): (u32, u32, u32),
    ) -> anyhow::Result<()> {
        let discover = format!("discover {} {}", volume.portals[0], volume.iqn);
        self.machine.run(&discover, ANSWER_LIMIT)?;
        let credentials = &volume.credentials;
        let secret = secret.unwrap_or(&credentials.secret);
        let mut command = format!(
            "credentials {} '{}' '{secret}'",
            volume.iqn, credentials.username
        );
        if let (Some(name), Some(own)) = (&credentials.target_username, &credentials.target_secret)
        {
            let own = target_secret.unwrap_or(own);
            command.push_str(&format!(" '{name}' '{own}'"));
        }
        self.machine.run(&command, ANSWER_LIMIT)?;
        let timeouts = format!("timeouts {} {replacement} {interval} {timeout}", volume.iqn);
        self.machine.run(&timeouts, ANSWER_LIMIT)?;
        Ok(())
    }

    fn login(&mut self, volume: &NewVolume, portals: &[String]) -> anyhow::Result<()> {
        let mut command = format!("login {}", volume.iqn);
        for portal in portals {
            command.push(' ');
            command.push_str(portal);
        }
        self.machine.run(&command, WORK_LIMIT)?;
        Ok(())
    }

    fn logout(&mut self, volume: &NewVolume) -> anyhow::Result<()> {
        let logout = format!("logout {}", volume.iqn);
        self.machine.run(&logout, WORK_LIMIT)?;
        Ok(())
    }

    /// The portal of a target's one session.
    fn portal_in_use(&mut self, volume: &NewVolume) -> anyhow::Result<String> {
        let list = self.machine.run("iscsiadm -m session", ANSWER_LIMIT)?;
        // tcp: [3] 127.0.0.1:3260,1 iqn.2026-11.io.holdfast:db (non-flash)
        let mut lines = list.lines().filter(|line| line.contains(&volume.iqn));
        let words = lines.next().and_then(|line| line.split_whitespace().nth(2));
        let portal = words.and_then(|word| word.split(',').next());
        Ok(portal
            .with_context(|| format!("no session of {}:\n{list}", volume.iqn))?
            .to_owned())
    }

    /// A new filesystem, mounted, with load on it.
    fn begin_load(
        &mut self,
        kind: &'static str,
        device: String,
        directory: &'static str,
    ) -> anyhow::Result<()> {
        let make = format!("make_filesystem {kind} {device} {directory}");
        self.machine.run(&make, WORK_LIMIT)?;
        self.mounted = Some(Mounted {
            kind,
            device,
            directory,
        });
        self.start_load()
    }

    /// Load on the mounted filesystem, which has run for a stretch when this returns.
    fn start_load(&mut self) -> anyhow::Result<()> {
        self.start_load_of(FILES)
    }

    fn start_load_of(&mut self, files: u32) -> anyhow::Result<()> {
        let mounted = self.mounted.as_ref().context("a mounted filesystem")?;
        let start = format!("load_start {} {files}", mounted.directory);
        self.machine.run(&start, ANSWER_LIMIT)?;
        self.reach()
    }

    /// Waits until the load has gone on for a stretch.
    fn reach(&mut self) -> anyhow::Result<()> {
        let reaches = format!("load_reaches {STRETCH} {LOAD_LIMIT_S}");
        self.machine.run(&reaches, WORK_LIMIT)?;
        Ok(())
    }

    /// Kills a node while load runs, and waits until it has gone on.
    fn kill_under_load(&mut self, node: &NodeProcess) -> anyhow::Result<Killed> {
        let killed = self.demo.kill(node)?;
        self.reach()?;
        Ok(killed)
    }

    fn end_load(&mut self) -> anyhow::Result<String> {
        let stop = format!("load_stop {LOAD_LIMIT_S}");
        let said = self.machine.run(&stop, WORK_LIMIT)?;
        let mut numbers = said.split_whitespace().flat_map(str::parse::<u32>);
        let (Some(files), Some(longest)) = (numbers.next(), numbers.next()) else {
            anyhow::bail!("the load says {said:?}");
        };
        let seconds = f64::from(longest) / 100.0;
        Ok(format!(
            "{files} files written, the longest took {seconds:.2} s"
        ))
    }

    /// All files, then the filesystem when it is not mounted any more.
    fn verify_and_check(&mut self) -> anyhow::Result<String> {
        let mounted = self.mounted.take().context("a mounted filesystem")?;
        let right = self.machine.run("verify", WORK_LIMIT)?;
        // The judge has to be able to object.
        let damage = format!("damage {}/0 && ! verify", mounted.directory);
        self.machine.run(&damage, WORK_LIMIT)?;
        let unmount = format!("umount {}", mounted.directory);
        self.machine.run(&unmount, WORK_LIMIT)?;
        let check = format!("check_filesystem {} {}", mounted.kind, mounted.device);
        self.machine.run(&check, WORK_LIMIT)?;
        Ok(format!("{} checksums right, clean", right.trim()))
    }

    /// Writes a file that the nodes notice, deletes it, trims, and waits until they hold less.
    fn trim(&mut self) -> anyhow::Result<String> {
        let mounted = self.mounted.as_ref().context("a mounted filesystem")?;
        let directory = mounted.directory;
        let write =
            format!("dd if=/dev/urandom of={directory}/ballast bs=1M count={BALLAST_MIB} && sync");
        self.machine.run(&write, WORK_LIMIT)?;
        let before = self.demo.home_used_bytes()?;
        let trim = format!("rm {directory}/ballast && sync && fstrim -v {directory}");
        let said = self.machine.run(&trim, WORK_LIMIT)?;
        let deadline = Instant::now() + TRIM_LIMIT;
        let wanted = before.saturating_sub(BALLAST_MIB * MIB);
        let mut after = self.demo.home_used_bytes()?;
        while after > wanted && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(500));
            after = self.demo.home_used_bytes()?;
        }
        let held = format!(
            "the nodes hold {} MiB, {} before",
            after / MIB,
            before / MIB
        );
        ensure!(after <= wanted, "space was not given back: {held}");
        Ok(format!("given back: {held}; {}", said.trim()))
    }

    fn no_complaints(&mut self, pattern: &str) -> anyhow::Result<()> {
        let search = format!("kernel_complaints '{pattern}'");
        self.machine
            .run(&search, ANSWER_LIMIT)
            .context("the kernel complains")?;
        Ok(())
    }
}
