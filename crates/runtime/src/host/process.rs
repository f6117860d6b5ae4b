//! What a process as a whole agrees with the operating system: signals and descriptors.

/// Ignores the signals with which the kernel answers an output that it does not take, so that the
/// write gets an error instead: SIGPIPE (nobody reads) and SIGXFSZ (`ulimit -f`) would end the
/// process, SIGTTOU (a terminal that belongs to another job, with `stty tostop`) would stop it.
///
/// Call it before the first thread and the first signal handler. Child processes inherit it.
pub fn ignore_output_signals() {
    for number in [libc::SIGPIPE, libc::SIGXFSZ, libc::SIGTTOU] {
        // SAFETY: ignoring a signal installs no code; the numbers are those of real signals that
        // may be ignored.
        let before = unsafe { libc::signal(number, libc::SIG_IGN) };
        assert!(before != libc::SIG_ERR, "signal {number} can be ignored");
    }
}

/// Whether a signal is ignored, as `nohup` does with SIGHUP for the process that it starts.
pub fn ignores(signal: i32) -> bool {
    let mut action = std::mem::MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: without a new action this only writes the present one to `action`, which is writable
    // for the whole call.
    let result = unsafe { libc::sigaction(signal, std::ptr::null(), action.as_mut_ptr()) };
    if result != 0 {
        return false;
    }
    // SAFETY: the kernel has filled it in; it was zeroed, and all zeroes are a valid value.
    unsafe { action.assume_init() }.sa_sigaction == libc::SIG_IGN
}

/// Lets the process have as many descriptors as it is allowed to, and says how many those are.
/// What a shell or a service manager gives by default (1024) is for programs that call `select`.
pub fn raise_descriptor_limit() -> u64 {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: `limit` is writable for the whole call.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } != 0 {
        return 1024;
    }
    let wanted = libc::rlimit {
        rlim_cur: limit.rlim_max,
        ..limit
    };
    // SAFETY: `wanted` is readable for the whole call.
    match unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const wanted) } {
        0 => wanted.rlim_cur,
        // Some containers forbid even this.
        _ => limit.rlim_cur,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ignored_signals_are_known_and_descriptors_only_become_more() {
        ignore_output_signals();
        assert!(ignores(libc::SIGXFSZ) && ignores(libc::SIGTTOU));
        assert!(!ignores(libc::SIGTERM));
        let first = raise_descriptor_limit();
        assert!(first >= 3);
        assert_eq!(raise_descriptor_limit(), first);
    }
}
