//! What this process has used of the machine; for benchmarks too.

#![allow(clippy::unwrap_used, reason = "for tests and benchmarks")]

use std::time::Duration;

/// Memory of its own: pages that were read from files aren't counted.
pub(crate) fn memory_bytes() -> usize {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: Vec<usize> = pages.split_whitespace().map(|number| number.parse().unwrap()).collect();
    (pages[1] - pages[2]) * 4096
}

#[allow(dead_code, reason = "not every user wants both")]
pub(crate) fn cpu_time() -> Duration {
    // SAFETY: getrusage fills in a plain struct.
    let usage = unsafe {
        let mut usage = std::mem::zeroed::<libc::rusage>();
        libc::getrusage(libc::RUSAGE_SELF, &raw mut usage);
        usage
    };
    let of = |time: libc::timeval| Duration::new(time.tv_sec as u64, time.tv_usec as u32 * 1000);
    of(usage.ru_utime) + of(usage.ru_stime)
}
