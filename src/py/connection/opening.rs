//! What `connect` asks for, and the connection that comes of it: converted, its handshake waited for, and its client's return provided for.

use std::os::fd::RawFd;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use pyo3::exceptions::{PyTimeoutError, PyValueError};
use pyo3::prelude::*;

use super::closing::{AGES, HASTE};
use super::{Connection, Manner, wait_for};
use crate::engine::link::{Keeper, Link, LinkError, Reconnect};
use crate::engine::notices;
use crate::net::tls::ClientTls;
use crate::proto::adaptive::{AdaptiveConfig, Learnt, Losses, Network};
use crate::proto::backoff::BackoffConfig;
use crate::proto::close::{Close, CloseCode};
use crate::proto::connection::{Config, Introduction};
use crate::proto::detector::{DetectorConfig, PhiConfig};
use crate::proto::heartbeat::HeartbeatConfig;
use crate::py::callback::call;
use crate::py::dial::{Places, target};
use crate::py::errors::{ended, link_error, listener_error, seconds};
use crate::py::events::observe;
use crate::py::hub::Hub;
use crate::py::keepalive::{keepalive, take_over};
use crate::py::pulse;
use crate::py::timeout::Timeout;
use crate::py::tls::{ClientSettings, Handshaken};
use crate::py::waiting::{Handshake, Waiting};

/// What `Heartbeat` hands over: interval, limit, is it phi, floor, threshold, window, least deviation, acceptable pause,
/// application limit, interpreter limit; seconds. And how far the interval may grow, and by which steps.
pub(in crate::py) type Rhythm =
    (f64, Option<f64>, bool, f64, f64, usize, f64, f64, Option<f64>, Option<f64>, Option<(f64, f64)>);

/// Of all connections that this process has made.
static LOSSES: OnceLock<Arc<Losses>> = OnceLock::new();

pub(in crate::py) fn config(
    heartbeat: Rhythm,
    largest_message_bytes: u64,
    handshake_timeout: Duration,
) -> PyResult<Config> {
    let (interval, limit, is_phi, floor, threshold, window, min_std, pause, application, interpreter, adaptive) =
        heartbeat;
    let want = seconds(interval)?;
    let adaptive = match adaptive {
        Some((max, step)) => Some(AdaptiveConfig { min: want, max: seconds(max)?, step }),
        None => None,
    };
    let heartbeat = HeartbeatConfig {
        want,
        adaptive,
        floor: seconds(floor)?,
        limit: limit.map(seconds).transpose()?,
        detector: if is_phi {
            let (min_std, acceptable_pause) = (seconds(min_std)?, seconds(pause)?);
            DetectorConfig::Phi(PhiConfig { threshold, window, min_std, acceptable_pause })
        } else {
            DetectorConfig::Limit
        },
        application_limit: application.map(seconds).transpose()?,
        interpreter_limit: interpreter.map(seconds).transpose()?,
    };
    heartbeat.validate().map_err(|error| PyValueError::new_err(error.to_string()))?;
    let losses = LOSSES.get_or_init(Arc::default).clone();
    Ok(Config { heartbeat, largest_message_bytes, handshake_timeout, losses, ..Config::default() })
}

/// What is known of a network: its prefix, the longest interval that was borne, for how long that has been settled, and how often it
/// has failed since; seconds.
type Kept = (String, f64, Option<f64>, u32);

fn learnt_before((prefix, proven, settled_for, failures): Kept) -> PyResult<(Network, Learnt)> {
    let prefix = prefix.parse().map_err(|_| PyValueError::new_err(format!("not an IP address: {prefix}")))?;
    let settled_for = settled_for.map(seconds).transpose()?;
    Ok((Network::of(prefix), Learnt { proven: seconds(proven)?, settled_for, failures }))
}

/// Has `keeper` called with a list of [`Kept`], on the thread of the notices.
fn keep_by(keeper: Py<PyAny>) -> Keeper {
    let keeper = Arc::new(keeper);
    Box::new(move |learnt| {
        let keeper = keeper.clone();
        let kept = move |(network, learnt): (Network, Learnt)| -> Kept {
            let settled_for = learnt.settled_for.map(|age| age.as_secs_f64());
            (network.prefix().to_string(), learnt.proven.as_secs_f64(), settled_for, learnt.failures)
        };
        notices::call(Box::new(move || {
            Python::try_attach(move |py| {
                let learnt: Vec<_> = learnt.into_iter().map(kept).collect();
                if let Err(error) = call(keeper.bind(py), (learnt,)) {
                    error.write_unraisable(py, Some(keeper.bind(py)));
                }
            });
        }));
    })
}

/// How a client comes back: to which places, the first spread, the cap and the factor of its backoff, whether it follows the
/// server's word, whether it sends again what may have been taken, when it gives up; seconds. And the kernel's probes.
pub(in crate::py) type ComingBack =
    (Places, f64, f64, f64, bool, bool, Option<f64>, Option<(f64, f64, u32, Option<f64>)>);

fn reconnect(
    (places, first, cap, factor, follows, _, _, probes): ComingBack,
    tls: Option<ClientTls>,
) -> PyResult<Reconnect> {
    let backoff = BackoffConfig { first: seconds(first)?, cap: seconds(cap)?, factor };
    backoff.validate().map_err(|error| PyValueError::new_err(error.to_string()))?;
    let keepalive = match probes {
        Some((idle, interval, count, user_timeout)) => {
            Some(keepalive(Some(true), Some(idle), Some(interval), Some(count), user_timeout)?)
        }
        None => None,
    };
    Ok(Reconnect { target: target(places), backoff, follows, keepalive, tls })
}

/// Makes a link of a connected TCP socket, which it takes over, and waits for the handshake: at once, or where there is a hub
/// by what it returns, to be awaited.
#[pyfunction]
#[allow(clippy::too_many_arguments, reason = "one for each of connect's")]
#[pyo3(signature = (
    fd,
    *,
    heartbeat,
    largest_message_bytes,
    client_id,
    token,
    timeout,
    on_event,
    coming_back,
    raises_when_full,
    tls,
    handshaken,
    learnt = None,
    keeper = None,
    hub = None
))]
pub(in crate::py) fn open_link(
    py: Python<'_>,
    fd: RawFd,
    heartbeat: Rhythm,
    largest_message_bytes: u64,
    client_id: String,
    token: Vec<u8>,
    timeout: Timeout,
    on_event: Option<Py<PyAny>>,
    coming_back: Option<ComingBack>,
    raises_when_full: bool,
    tls: Option<Py<ClientSettings>>,
    handshaken: Option<Py<Handshaken>>,
    learnt: Option<Vec<Kept>>,
    keeper: Option<Py<PyAny>>,
    hub: Option<Py<Hub>>,
) -> PyResult<Py<PyAny>> {
    let socket = take_over(fd)?;
    let deadline = timeout.deadline(None);
    // The caller's deadline comes first, or the time is nobody's to choose but the peer's.
    let handshake_timeout = timeout.or(None).unwrap_or(AGES).saturating_add(HASTE).min(AGES);
    let mut config = config(heartbeat, largest_message_bytes, handshake_timeout)?;
    if let Some((.., resends, give_up_after, _)) = &coming_back {
        config.resends = *resends;
        config.give_up_after = give_up_after.map(seconds).transpose()?;
    }
    let learnt = learnt.into_iter().flatten().map(learnt_before).collect::<PyResult<_>>()?;
    let introduction = Introduction { client_id, token, will_resume: coming_back.is_some(), learnt };
    let tls = tls.map(|settings| settings.get().0.clone());
    let coming_back = coming_back.map(|how| reconnect(how, tls)).transpose()?;
    let secured = handshaken.and_then(|handshaken| handshaken.get().take());
    let link = py
        .detach(|| {
            let link = Link::client(socket, secured, Arc::new(config), introduction)?;
            if let Some(coming_back) = coming_back {
                link.set_reconnect(coming_back)?;
            }
            Ok(link)
        })
        .map_err(|error: LinkError| listener_error(py, error))?;
    pulse::begin();
    let mut opening = Opening { link, raises_when_full, is_over: false };
    observe(py, &opening.link, on_event).map_err(|error| link_error(py, error, &opening.link, false))?;
    if let Some(keeper) = keeper {
        let keeper = keep_by(keeper);
        py.detach(|| opening.link.set_keeper(keeper)).map_err(|error| link_error(py, error, &opening.link, false))?;
    }
    if let Some(hub) = hub {
        let handshake = Handshake { opening, hub: hub.clone_ref(py) };
        return Waiting::of(py, &hub, "connect()", Box::new(handshake), timeout.or(None));
    }
    let opened = wait_for(py, &opening.link, deadline, |link, deadline| link.wait_open(deadline))?;
    Ok(opening.settle(py, opened, None)?.into_any())
}

/// A connection whose handshake is under way; it goes with who waits for it.
pub(in crate::py) struct Opening {
    pub(in crate::py) link: Arc<Link>,
    raises_when_full: bool,
    is_over: bool,
}

impl Opening {
    /// What came of waiting for it.
    pub(in crate::py) fn settle(
        &mut self,
        py: Python<'_>,
        opened: Result<(), LinkError>,
        hub: Option<Py<Hub>>,
    ) -> PyResult<Py<Connection>> {
        self.is_over = matches!(opened, Ok(()) | Err(LinkError::Ended(_)));
        match opened {
            Ok(()) => {
                let manner = Manner { raises_when_full: self.raises_when_full, hub, ..Manner::default() };
                Connection::make(py, self.link.clone(), true, manner)
            }
            Err(LinkError::Ended(ending)) => Err(ended(py, &ending, &self.link, false).unwrap_or_else(|error| error)),
            Err(LinkError::TimedOut) => Err(PyTimeoutError::new_err(format!(
                "{} accepted the connection and did not finish the handshake in time: if it isn't a LongServer, say framing=...",
                self.link.peer_address()
            ))),
            Err(error) => Err(link_error(py, error, &self.link, false)),
        }
    }
}

impl Drop for Opening {
    fn drop(&mut self) {
        if !self.is_over {
            Python::try_attach(|py| {
                let _ = py.detach(|| self.link.close(Close::new(CloseCode::NORMAL, ""), Duration::ZERO));
            });
        }
    }
}
