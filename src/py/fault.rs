//! The fault proxy for Python.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use super::connection::pair;
use super::dial::{Places, target};
use super::errors::{error_class, listener_error, os_error, seconds};
use crate::engine::link::LinkError;
use crate::engine::proxy::{Order, Proxy as EngineProxy, ProxyConfig, Whom};
use crate::fault::flow::{Fault, Passage, Then, Way};

/// What `FaultProxy` stands on.
#[pyclass(frozen, module = "longconn._longconn")]
pub(super) struct Proxy(Arc<EngineProxy>);

/// (number, client, connected, forgotten, to the server, to the client), and of each direction (entered, left, lost, corrupted, held).
type Glimpse = (u64, (String, u16), bool, bool, Counts, Counts);
type Counts = (u64, u64, u64, u64, usize);
/// (at, until, what, connection, direction, bytes, detail), times in seconds since the proxy began.
type Entry = (f64, f64, &'static str, Option<u64>, Option<&'static str>, u64, String);

fn proxy_error(py: Python<'_>, error: LinkError) -> PyErr {
    match error {
        LinkError::Closed => {
            let text = "this fault proxy is closed";
            let made = error_class(py, "AlreadyClosed").and_then(|class| class.call1((libc::EBADF, text)));
            made.map_or_else(|error| error, PyErr::from_value)
        }
        error => listener_error(py, error),
    }
}

fn ways(direction: &str) -> PyResult<&'static [Way]> {
    match direction {
        "both" | "to_server" | "to_client" => Ok(Way::these(direction != "to_client", direction != "to_server")),
        _ => {
            let text = format!("direction={direction:?}: \"to_server\", \"to_client\" or \"both\"");
            Err(PyValueError::new_err(text))
        }
    }
}

fn not_one_direction(direction: &str) -> PyErr {
    PyValueError::new_err(format!("direction={direction:?}: \"to_server\" or \"to_client\""))
}

/// Python has checked names and ranges, and gives all numbers as floats, which hold each number of bytes that a connection carries.
fn order(verb: &str, direction: &str, numbers: &[f64]) -> PyResult<Order> {
    let ways = ways(direction)?;
    let count = |value: f64| value as u64;
    let fault = match (verb, numbers) {
        ("open", []) => Fault::Passage(Passage::Open),
        ("stall", []) => Fault::Passage(Passage::Stalled),
        ("cut", []) => Fault::Passage(Passage::Cut),
        ("lose", [loses]) => Fault::Lose(*loses != 0.0),
        ("latency", [delay, jitter]) => Fault::Latency { delay: seconds(*delay)?, jitter: seconds(*jitter)? },
        ("bandwidth", [width]) => Fault::Bandwidth((*width > 0.0).then(|| count(*width).max(1))),
        ("slice", [size, spread, delay]) => {
            Fault::Slice { size: count(*size), spread: count(*spread), delay: seconds(*delay)? }
        }
        ("corrupt", [probability]) => Fault::Corrupt(*probability),
        ("corrupt_at", [bytes]) => Fault::CorruptAt(count(*bytes)),
        ("stall_after", [bytes]) => Fault::Limit(count(*bytes), Then::Stall),
        ("cut_after", [bytes]) => Fault::Limit(count(*bytes), Then::Cut),
        ("cut_both_after", [bytes]) => Fault::Limit(count(*bytes), Then::CutBoth),
        ("end_after", [bytes]) => Fault::Limit(count(*bytes), Then::End),
        ("reset_after", [bytes]) => Fault::Limit(count(*bytes), Then::Reset),
        ("slow_end", [delay]) => Fault::SlowEnd(seconds(*delay)?),
        ("half_close", []) => Fault::End,
        ("reset", []) => return Ok(Order::Reset(ways)),
        ("end", []) => return Ok(Order::End),
        ("forget", [resets]) => return Ok(Order::Forget { resets: *resets != 0.0 }),
        ("forget_after", [idle, resets]) => {
            let idle = idle.is_finite().then(|| seconds(*idle)).transpose()?;
            return Ok(Order::ForgetAfter(idle, *resets != 0.0));
        }
        ("expire", [age, resets]) => {
            let age = age.is_finite().then(|| seconds(*age)).transpose()?;
            return Ok(Order::Expire(age, *resets != 0.0));
        }
        ("refuse", [refuses]) => return Ok(Order::Refuse(*refuses != 0.0)),
        ("limit_connections", [most]) => {
            return Ok(Order::LimitConnections(if most.is_finite() { *most as usize } else { usize::MAX }));
        }
        ("restore", []) => return Ok(Order::Restore(ways)),
        _ => return Err(PyValueError::new_err(format!("no fault {verb:?} with {} numbers", numbers.len()))),
    };
    Ok(Order::Fault(ways, fault))
}

#[pymethods]
impl Proxy {
    #[new]
    fn new(
        py: Python<'_>,
        address: (String, u16),
        upstream: Places,
        room_bytes: usize,
        seed: u64,
        captured_bytes: usize,
    ) -> PyResult<Self> {
        let (host, port) = address;
        let ip = host.parse().map_err(|_| PyValueError::new_err(format!("host={host:?}: an IP address")))?;
        let config = ProxyConfig { room_bytes, seed, captured_bytes };
        py.detach(|| EngineProxy::new(SocketAddr::new(ip, port), target(upstream), &config))
            .map(Self)
            .map_err(|error| os_error(&error))
    }

    #[getter]
    fn address(&self) -> (String, u16) {
        pair(self.0.address())
    }

    fn set_upstream(&self, py: Python<'_>, upstream: Places) -> PyResult<()> {
        py.detach(|| self.0.set_upstream(target(upstream))).map_err(|error| proxy_error(py, error))
    }

    /// At once, or after so many seconds, which gives a number to cancel it by; for all connections, for one, or for each with this
    /// probability. `detail` is for the record.
    #[allow(clippy::too_many_arguments, reason = "one for each of what an order is")]
    fn order(
        &self,
        py: Python<'_>,
        fault: (String, String, Vec<f64>),
        connection: Option<u64>,
        share: Option<f64>,
        after: Option<f64>,
        detail: String,
    ) -> PyResult<Option<u64>> {
        let order = order(&fault.0, &fault.1, &fault.2)?;
        let whom = match (connection, share) {
            (Some(number), _) => Whom::One(number),
            (None, Some(share)) => Whom::Share(share),
            (None, None) => Whom::All,
        };
        let after: Option<Duration> = after.map(seconds).transpose()?;
        py.detach(|| match after {
            None => self.0.order(&order, whom, &detail).map(|()| None),
            Some(delay) => self.0.plan(delay, order, whom, detail).map(Some),
        })
        .map_err(|error| proxy_error(py, error))
    }

    fn cancel(&self, py: Python<'_>, plan: Option<u64>) -> PyResult<()> {
        py.detach(|| self.0.cancel(plan)).map_err(|error| proxy_error(py, error))
    }

    fn accepted(&self, py: Python<'_>) -> PyResult<u64> {
        py.detach(|| self.0.accepted()).map_err(|error| proxy_error(py, error))
    }

    fn connections(&self, py: Python<'_>) -> PyResult<Vec<Glimpse>> {
        let glimpses = py.detach(|| self.0.connections()).map_err(|error| proxy_error(py, error))?;
        let counts = |(counts, held): &(crate::fault::flow::Counts, usize)| {
            (counts.entered, counts.left, counts.lost, counts.corrupted, *held)
        };
        Ok(glimpses
            .iter()
            .map(|it| {
                let [to_server, to_client] = &it.flows;
                let client = pair(it.client);
                (it.number, client, it.is_connected, it.is_forgotten, counts(to_server), counts(to_client))
            })
            .collect())
    }

    fn captured<'py>(&self, py: Python<'py>, connection: u64, direction: &str) -> PyResult<Bound<'py, PyBytes>> {
        let [way] = ways(direction)? else { return Err(not_one_direction(direction)) };
        let said = py.detach(|| self.0.captured(connection, *way)).map_err(|error| proxy_error(py, error))?;
        Ok(PyBytes::new(py, &said))
    }

    /// And how many entries were too many.
    fn record(&self, py: Python<'_>) -> PyResult<(Vec<Entry>, u64)> {
        let record = py.detach(|| self.0.record()).map_err(|error| proxy_error(py, error))?;
        let since = |at| self.0.since_began(at).as_secs_f64();
        let entries = record.entries().map(|it| {
            let way = it.way.map(Way::name);
            (since(it.at), since(it.until), it.what.name(), it.connection, way, it.bytes, it.detail.clone())
        });
        Ok((entries.collect(), record.dropped()))
    }

    /// Seconds since the proxy began.
    fn now(&self) -> f64 {
        self.0.since_began(crate::engine::clock::now()).as_secs_f64()
    }

    fn close(&self, py: Python<'_>) -> PyResult<()> {
        match py.detach(|| self.0.close()) {
            // In a forked child its descriptors are closed already.
            Ok(()) | Err(LinkError::Forked) => Ok(()),
            Err(error) => Err(proxy_error(py, error)),
        }
    }
}
