//! Two machines over a fake link, in simulated time: latency, splits, stalls and cuts, and a clock that jumps.

#![allow(dead_code, unreachable_pub, reason = "each test file uses its part of this module")]

use std::collections::VecDeque;
use std::mem::MaybeUninit;
use std::time::{Duration, Instant};

use longconn::proto::cause::Ending;
use longconn::proto::close::{Close, CloseCode};
use longconn::proto::connection::{Action, Config, Connection, Event, Introduction};
use longconn::proto::evidence::KernelView;
use longconn::proto::handshake::Credentials;
use longconn::proto::heartbeat::HeartbeatConfig;
use longconn::proto::moment::Moment;
use longconn::proto::placing::{HEADERS_BYTES, Placing};

pub const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

pub const CREDENTIALS: Credentials = Credentials { id: [1; 16], secret: [2; 32] };

/// Numbers without pattern (xorshift, Marsaglia 2003).
#[derive(Clone, Debug)]
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Self {
        let mut dice = Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
        dice.below(2);
        dice
    }

    pub fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) % end.max(1)
    }
}

pub fn config(want: Duration) -> Config {
    Config { heartbeat: HeartbeatConfig { want, ..HeartbeatConfig::default() }, ..Config::default() }
}

/// One direction.
#[derive(Debug, Default)]
pub struct Pipe {
    pub latency: Duration,
    /// What is sent waits, as a kernel that repeats it makes it wait.
    pub is_cut: bool,
    /// A narrow path; 0: as wide as can be.
    pub bytes_per_second: u32,
    busy_until: Option<Instant>,
    /// Bytes arrive and are acknowledged, and nobody gets them.
    pub swallows: bool,
    in_flight: VecDeque<(Instant, Vec<u8>)>,
    in_flight_bytes: usize,
    written: u64,
    arrived: u64,
    acked: u64,
    acks: VecDeque<(Instant, u64)>,
    last_ack: Option<Instant>,
    fin_due: Option<Instant>,
    reset_due: Option<Instant>,
}

#[derive(Debug)]
pub struct Side {
    pub connection: Connection,
    pub events: Vec<(Instant, Event)>,
    pub received: Vec<Vec<u8>>,
    /// Every whole message is taken at once.
    pub takes: bool,
    /// The process is stopped; its kernel isn't.
    pub is_frozen: bool,
    /// Its kernel tells nothing.
    pub is_blind: bool,
    pub is_over: bool,
    pub aborted: bool,
    pub looks: u64,
    /// A message that is received into its place.
    placed: Option<Placed>,
    kernel_buffer: Vec<u8>,
    fin_arrived: bool,
    reset_arrived: bool,
    timeout: Option<Instant>,
}

impl Side {
    pub fn new(connection: Connection) -> Self {
        Self {
            connection,
            events: Vec::new(),
            received: Vec::new(),
            takes: true,
            is_frozen: false,
            is_blind: false,
            is_over: false,
            aborted: false,
            looks: 0,
            placed: None,
            kernel_buffer: Vec::new(),
            fin_arrived: false,
            reset_arrived: false,
            timeout: None,
        }
    }

    /// Gives `input` to the message that is received into its place, if one is, or has begun and may be; how much of it was
    /// for that.
    fn place(&mut self, now: Instant, input: &[u8]) -> usize {
        if self.placed.is_none() {
            let Some(length) = self.connection.begun() else { return 0 };
            let mut room = vec![MaybeUninit::new(0); length];
            let placing = self.connection.place_begun(&mut room).expect("it has begun");
            self.placed = Some(Placed { filled: placing.filled(), placing, room });
        }
        let Some(Placed { placing, mut room, mut filled }) = self.placed.take() else { return 0 };
        let mut headers = [MaybeUninit::new(0); HEADERS_BYTES];
        let mut left = input;
        for place in placing.places(&mut room, &mut headers) {
            let (bytes, rest) = left.split_at(left.len().min(place.len()));
            place[..bytes.len()].write_copy_of_slice(bytes);
            left = rest;
        }
        let came = input.len() - left.len();
        let (of_headers, of_content) = placing.shares(came);
        filled += of_content;
        // SAFETY: both were written to when they were made.
        let (headers, content) = unsafe { (headers[..of_headers].assume_init_ref(), room[..filled].assume_init_ref()) };
        match self.connection.handle_placed(now, placing, headers, content) {
            Some(placing) if placing.is_complete() => self.received.push(content.to_vec()),
            Some(placing) => self.placed = Some(Placed { placing, room, filled }),
            None => match self.connection.place_begun(&mut room) {
                Some(placing) => self.placed = Some(Placed { filled: placing.filled(), placing, room }),
                // SAFETY: as above.
                None => self.connection.take_back(now, None, unsafe { room[..filled].assume_init_ref() }),
            },
        }
        came
    }

    /// What is read goes the usual way again.
    pub fn take_back(&mut self, now: Instant) {
        if let Some(Placed { placing, room, filled }) = self.placed.take() {
            // SAFETY: it was written to when it was made.
            self.connection.take_back(now, Some(placing), unsafe { room[..filled].assume_init_ref() });
        }
    }

    pub fn ending(&self) -> Option<&Ending> {
        self.events.iter().find_map(|(_, event)| match event {
            Event::Ended(ending) => Some(&**ending),
            _ => None,
        })
    }

    pub fn ended_at(&self) -> Option<Instant> {
        self.events.iter().find(|(_, event)| matches!(event, Event::Ended(_))).map(|(at, _)| *at)
    }

    pub fn time_of(&self, wanted: fn(&Event) -> bool) -> Option<Instant> {
        self.events.iter().find(|(_, event)| wanted(event)).map(|(at, _)| *at)
    }
}

#[derive(Debug)]
struct Placed {
    placing: Placing,
    room: Vec<MaybeUninit<u8>>,
    filled: usize,
}

/// Side 0 is the client; pipe 0 leads from it.
#[derive(Debug)]
pub struct Pair {
    pub now: Instant,
    pub sides: [Side; 2],
    pub pipes: [Pipe; 2],
    /// Chunks and writes are cut at random.
    pub splits: bool,
    /// Messages are received into their places, or taken as they come, some of the time.
    pub places: bool,
    pub dice: Dice,
    /// What the kernel holds of what is under way.
    pub kernel_bytes: usize,
    steps_without_time: u32,
}

impl Pair {
    pub fn new(client: Config, server: Config) -> Self {
        Self::seeded(client, server, 7)
    }

    pub fn seeded(client: Config, server: Config, seed: u64) -> Self {
        let now = Instant::now();
        let introduction = Introduction { client_id: "device-7".into(), ..Introduction::default() };
        let sides = [
            Side::new(Connection::client(now, client.into(), seed, introduction).expect("a short id")),
            Side::new(Connection::server(now, server.into(), seed + 1)),
        ];
        let pipe = || Pipe { latency: ms(10), ..Pipe::default() };
        let pipes = [pipe(), pipe()];
        Self {
            now,
            sides,
            pipes,
            splits: false,
            places: false,
            dice: Dice::new(1),
            kernel_bytes: 1 << 20,
            steps_without_time: 0,
        }
    }

    /// A pair that has shaken hands.
    pub fn open(client: Config, server: Config) -> Self {
        let mut pair = Self::new(client, server);
        pair.run(ms(100));
        for side in &pair.sides {
            assert!(matches!(side.events[..], [.., (_, Event::Opened { .. })]), "{:?}", side.events);
        }
        pair
    }

    pub fn run(&mut self, duration: Duration) {
        self.run_until(self.now + duration);
    }

    pub fn run_until(&mut self, end: Instant) {
        while self.step(end) {}
        self.now = end;
    }

    /// Whatever happens at this moment, and then a jump to the next; false at `end`.
    pub fn step(&mut self, end: Instant) -> bool {
        let before = self.now;
        for index in 0..2 {
            self.arrive(index);
        }
        for index in 0..2 {
            self.serve(index);
        }
        let next = self.next_moment();
        let Some(next) = next.filter(|next| *next <= end) else { return false };
        self.now = self.now.max(next);
        self.steps_without_time = if self.now > before { 0 } else { self.steps_without_time + 1 };
        assert!(self.steps_without_time < 10_000, "a machine that never rests: {:?}", self.sides);
        true
    }

    fn next_moment(&self) -> Option<Instant> {
        let mut moments = Vec::new();
        for (index, side) in self.sides.iter().enumerate() {
            if !side.is_frozen && !side.is_over {
                moments.extend(side.timeout);
            }
            let pipe = &self.pipes[index];
            if !pipe.is_cut {
                moments.extend(pipe.in_flight.front().map(|(due, _)| *due));
                moments.extend(pipe.fin_due.filter(|_| pipe.in_flight.is_empty()));
                moments.extend(pipe.reset_due);
            }
            if !self.pipes[1 - index].is_cut {
                moments.extend(pipe.acks.front().map(|(due, _)| *due));
            }
        }
        moments.into_iter().min()
    }

    /// What is due on the pipe that leads to side `index`.
    fn arrive(&mut self, index: usize) {
        let now = self.now;
        let back_is_cut = self.pipes[index].is_cut;
        let back_latency = self.pipes[index].latency;
        let side = &mut self.sides[index];
        let pipe = &mut self.pipes[1 - index];
        if !pipe.is_cut {
            while pipe.in_flight.front().is_some_and(|(due, _)| *due <= now) {
                let Some((_, bytes)) = pipe.in_flight.pop_front() else { break };
                pipe.arrived += bytes.len() as u64;
                pipe.in_flight_bytes -= bytes.len();
                pipe.acks.push_back((now + back_latency, pipe.arrived));
                if !side.is_over && !pipe.swallows {
                    side.kernel_buffer.extend_from_slice(&bytes);
                }
            }
            if pipe.in_flight.is_empty() && pipe.fin_due.is_some_and(|due| due <= now) {
                pipe.fin_due = None;
                side.fin_arrived = true;
            }
            if pipe.reset_due.is_some_and(|due| due <= now) {
                pipe.reset_due = None;
                side.reset_arrived = true;
            }
        }
        if !back_is_cut {
            while pipe.acks.front().is_some_and(|(due, _)| *due <= now) {
                let Some((_, acked)) = pipe.acks.pop_front() else { break };
                pipe.acked = acked;
                pipe.last_ack = Some(now);
            }
        }
    }

    /// A turn of the driver of side `index`.
    pub fn serve(&mut self, index: usize) {
        let now = self.now;
        let side = &mut self.sides[index];
        if side.is_frozen || side.is_over {
            return;
        }
        let mut input = &std::mem::take(&mut side.kernel_buffer)[..];
        while !input.is_empty() {
            let length = if self.splits { 1 + self.dice.below(input.len() as u64) as usize } else { input.len() };
            let starts = self.places && side.takes && self.dice.below(2) == 0;
            let placed = if starts || side.placed.is_some() { side.place(now, &input[..length]) } else { 0 };
            let (chunk, rest) = input.split_at(if placed > 0 { placed } else { length });
            if placed == 0 {
                let passes = self.places && side.takes && side.placed.is_none() && self.dice.below(2) == 0;
                match passes.then(|| side.connection.handle_message(now, chunk)).flatten() {
                    Some(message) => side.received.push(message.to_vec()),
                    None => side.connection.handle_input(now, chunk),
                }
            }
            input = rest;
        }
        if side.fin_arrived || side.reset_arrived || self.dice.below(16) == 0 {
            side.take_back(now);
        }
        if std::mem::take(&mut side.fin_arrived) {
            side.connection.handle_end(now);
        }
        if std::mem::take(&mut side.reset_arrived) {
            side.connection.handle_reset(now);
        }
        if side.timeout.is_some_and(|due| now >= due) {
            side.connection.handle_timeout(now);
        }
        self.turn(index);
    }

    /// Takes, transmits, acts and listens, as the core's contract has it.
    pub fn turn(&mut self, index: usize) {
        let now = self.now;
        loop {
            if self.sides[index].takes {
                let side = &mut self.sides[index];
                while let Some(message) = side.connection.read() {
                    side.received.push(message.to_vec());
                    side.connection.take(now, 1);
                }
            }
            let side = &mut self.sides[index];
            if side.connection.budget_wanted() > 0 {
                side.connection.grant_budget();
            }
            self.transmit(index);
            let side = &mut self.sides[index];
            match side.connection.poll_action() {
                None => break,
                Some(Action::Look) => {
                    side.looks += 1;
                    let view = (!side.is_blind).then(|| self.view(index));
                    self.sides[index].connection.handle_kernel(now, view);
                }
                Some(Action::ShutdownWrite) => {
                    let pipe = &mut self.pipes[index];
                    pipe.fin_due = Some(now + pipe.latency);
                }
                Some(Action::Abort) => {
                    (side.is_over, side.aborted) = (true, true);
                    let pipe = &mut self.pipes[index];
                    // What is under way before the RST arrives before it.
                    pipe.reset_due = Some(now + pipe.latency);
                }
                Some(Action::Close) => {
                    side.is_over = true;
                    let pipe = &mut self.pipes[index];
                    pipe.fin_due.get_or_insert(now + pipe.latency);
                }
            }
        }
        let side = &mut self.sides[index];
        while let Some(event) = side.connection.poll_event() {
            if let Event::Hello(_) = event {
                side.connection.accept(CREDENTIALS, ms(60_000));
            }
            side.events.push((now, event));
        }
        self.transmit(index);
        let side = &mut self.sides[index];
        side.timeout = side.connection.poll_timeout().map(Moment::instant);
    }

    fn transmit(&mut self, index: usize) {
        let now = self.now;
        let connection = &mut self.sides[index].connection;
        let pipe = &mut self.pipes[index];
        loop {
            let transmit = connection.poll_transmit(now);
            let mut bytes = [transmit.first, transmit.control, transmit.data].concat();
            let room = self.kernel_bytes.saturating_sub(pipe.in_flight_bytes);
            let length = bytes.len().min(room);
            let length = if self.splits { length.min(1 + self.dice.below(length as u64 * 2) as usize) } else { length };
            if length == 0 {
                return;
            }
            bytes.truncate(length);
            connection.transmitted(now, length);
            pipe.written += length as u64;
            pipe.in_flight_bytes += length;
            let packet = if pipe.bytes_per_second == 0 { length } else { 1400 };
            for bytes in bytes.chunks(packet) {
                let mut sent = pipe.busy_until.map_or(now, |busy| busy.max(now));
                if pipe.bytes_per_second > 0 {
                    sent += Duration::from_secs(bytes.len() as u64) / pipe.bytes_per_second;
                    pipe.busy_until = Some(sent);
                }
                pipe.in_flight.push_back((sent + pipe.latency, bytes.to_vec()));
            }
        }
    }

    fn view(&self, index: usize) -> KernelView {
        let pipe = &self.pipes[index];
        KernelView {
            written: pipe.written,
            bytes_acked: pipe.acked,
            unacked: u32::from(pipe.acked < pipe.written),
            unsent: 0,
            probes: 0,
            since_ack_received: pipe.last_ack.map_or(ms(1_000_000), |at| self.now.saturating_duration_since(at)),
            send_window: Some(65_535),
        }
    }

    pub fn send(&mut self, index: usize, message: &[u8]) {
        self.sides[index].connection.send(message).expect("there is room");
        self.turn(index);
    }

    pub fn close(&mut self, index: usize, deadline: Duration) {
        let close = Close::new(CloseCode::NORMAL, "done");
        self.sides[index].connection.close(self.now, close, self.now + deadline);
        self.turn(index);
    }

    pub fn cut(&mut self) {
        for pipe in &mut self.pipes {
            pipe.is_cut = true;
        }
    }

    pub fn mend(&mut self) {
        for pipe in &mut self.pipes {
            pipe.is_cut = false;
        }
    }
}
