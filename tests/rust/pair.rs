//! Two machines over a fake link, in simulated time: latency, splits, stalls and cuts, and a clock that jumps.

#![allow(dead_code, unreachable_pub, reason = "each test file uses its part of this module")]

use std::collections::VecDeque;
use std::mem::{self, MaybeUninit};
use std::time::{Duration, Instant};

use longconn::proto::cause::Ending;
use longconn::proto::close::{Close, CloseCode};
use longconn::proto::connection::{Action, Config, Connection, Event, Introduction, Transmit};
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
    /// Something in between has ended it: what is written now never arrives.
    is_broken: bool,
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

impl Pipe {
    pub fn with_latency(latency: Duration) -> Self {
        Self { latency, ..Self::default() }
    }

    /// All that was ever handed to the kernel.
    pub fn written(&self) -> u64 {
        self.written
    }

    /// The kernel takes what it has room for.
    pub fn carry(&mut self, now: Instant, bytes: &[u8]) {
        self.written += bytes.len() as u64;
        if self.is_broken {
            return;
        }
        self.in_flight_bytes += bytes.len();
        let packet = if self.bytes_per_second == 0 { bytes.len() } else { 1400 };
        for bytes in bytes.chunks(packet) {
            let mut sent = self.busy_until.map_or(now, |busy| busy.max(now));
            if self.bytes_per_second > 0 {
                sent += Duration::from_secs(bytes.len() as u64) / self.bytes_per_second;
                self.busy_until = Some(sent);
            }
            self.in_flight.push_back((sent + self.latency, bytes.to_vec()));
        }
    }

    pub fn end(&mut self, now: Instant) {
        self.fin_due.get_or_insert(now + self.latency);
    }

    /// What is under way before the RST arrives before it.
    pub fn reset(&mut self, now: Instant) {
        self.reset_due = Some(now + self.latency);
    }

    /// Of what was and will be written only so much ever arrives.
    pub fn lose_behind(&mut self, offset: u64) {
        self.is_broken = true;
        let mut left = usize::try_from(offset.saturating_sub(self.arrived)).unwrap_or(usize::MAX);
        for (_, bytes) in &mut self.in_flight {
            bytes.truncate(left);
            left -= bytes.len();
        }
        self.in_flight.retain(|(_, bytes)| !bytes.is_empty());
        self.in_flight_bytes = self.in_flight.iter().map(|(_, bytes)| bytes.len()).sum();
    }

    /// Bytes are due, to which a kernel answers RST if it has forgotten the connection.
    pub fn has_due(&self, now: Instant) -> bool {
        !self.is_cut && self.in_flight.front().is_some_and(|(due, _)| *due <= now)
    }

    /// Nothing is under way to the other end.
    pub fn is_empty(&self) -> bool {
        self.in_flight.is_empty() && self.fin_due.is_none() && self.reset_due.is_none()
    }

    /// When something happens next; `back_is_cut` tells of the other direction.
    pub fn next_moment(&self, back_is_cut: bool) -> Option<Instant> {
        let mut next = if back_is_cut { None } else { self.acks.front().map(|(due, _)| *due) };
        if !self.is_cut {
            let fin = self.fin_due.filter(|_| self.in_flight.is_empty());
            let due = [self.in_flight.front().map(|(due, _)| *due), fin, self.reset_due];
            next = next.into_iter().chain(due.into_iter().flatten()).min();
        }
        next
    }

    /// What is due goes to `socket`, and its acknowledgements come back; `back` is the other direction.
    pub fn arrive(&mut self, now: Instant, back: (bool, Duration), socket: &mut Socket) {
        let (back_is_cut, back_latency) = back;
        if !self.is_cut {
            while self.in_flight.front().is_some_and(|(due, _)| *due <= now) {
                let Some((_, bytes)) = self.in_flight.pop_front() else { break };
                self.arrived += bytes.len() as u64;
                self.in_flight_bytes -= bytes.len();
                self.acks.push_back((now + back_latency, self.arrived));
                if !socket.is_over && !self.swallows {
                    socket.buffer.extend_from_slice(&bytes);
                }
            }
            if self.in_flight.is_empty() && self.fin_due.is_some_and(|due| due <= now) {
                self.fin_due = None;
                socket.fin_arrived = true;
            }
            if self.reset_due.is_some_and(|due| due <= now) {
                self.reset_due = None;
                socket.reset_arrived = true;
            }
        }
        if !back_is_cut {
            while self.acks.front().is_some_and(|(due, _)| *due <= now) {
                let Some((_, acked)) = self.acks.pop_front() else { break };
                self.acked = acked;
                self.last_ack = Some(now);
            }
        }
    }

    fn view(&self, now: Instant) -> KernelView {
        KernelView {
            written: self.written,
            bytes_acked: self.acked,
            unacked: u32::from(self.acked < self.written),
            unsent: 0,
            probes: 0,
            since_ack_received: self.last_ack.map_or(ms(1_000_000), |at| now.saturating_duration_since(at)),
            send_window: Some(65_535),
        }
    }
}

/// What a kernel holds for one end of a connection.
#[derive(Debug, Default)]
pub struct Socket {
    buffer: Vec<u8>,
    fin_arrived: bool,
    reset_arrived: bool,
    /// It was closed, or reset.
    pub is_over: bool,
}

/// How a driver goes about its work.
#[derive(Debug)]
pub struct Driving<'d> {
    /// Chunks and writes are cut at random.
    pub splits: bool,
    /// Messages are received into their places, some of the time.
    pub places: bool,
    pub dice: &'d mut Dice,
    /// What the kernel holds of what is under way.
    pub kernel_bytes: usize,
}

#[derive(Debug)]
pub struct Side {
    pub connection: Connection,
    pub events: Vec<(Instant, Event)>,
    pub received: Vec<Vec<u8>>,
    /// Every whole message is taken at once.
    pub takes: bool,
    /// What was read, and isn't taken yet.
    pub peeked: Vec<Vec<u8>>,
    /// Messages that could be read and not be taken.
    pub too_late: u64,
    /// What a message or a window wants of the process's memory it gets.
    pub grants: bool,
    /// A client that says HELLO gets a new session; else that is left to the test.
    pub accepts: bool,
    pub socket: Socket,
    /// The process is stopped; its kernel isn't.
    pub is_frozen: bool,
    /// Its kernel tells nothing.
    pub is_blind: bool,
    pub aborted: bool,
    pub looks: u64,
    /// As far as the test has looked.
    pub widest_window: u64,
    pub sent_offsets: (u64, u64),
    /// Times that a link broke inside a message that was received into its place.
    pub taken_back: u64,
    /// A message that is received into its place.
    placed: Option<Placed>,
    timeout: Option<Instant>,
}

impl Side {
    pub fn new(connection: Connection) -> Self {
        Self {
            connection,
            events: Vec::new(),
            received: Vec::new(),
            takes: true,
            peeked: Vec::new(),
            too_late: 0,
            grants: true,
            accepts: true,
            socket: Socket::default(),
            is_frozen: false,
            is_blind: false,
            aborted: false,
            looks: 0,
            widest_window: 0,
            sent_offsets: (0, 0),
            taken_back: 0,
            placed: None,
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

    /// The link is over; of the frame begun nothing is left.
    fn give_room_back(&mut self, now: Instant) {
        if let Some(Placed { room, filled, .. }) = self.placed.take() {
            self.taken_back += 1;
            // SAFETY: as above.
            self.connection.take_back(now, None, unsafe { room[..filled].assume_init_ref() });
        }
    }

    /// Reads one message more without taking it.
    pub fn peek(&mut self) -> bool {
        let message = self.connection.read().map(<[u8]>::to_vec);
        let is_there = message.is_some();
        self.peeked.extend(message);
        is_there
    }

    /// So many of what was read are with the program.
    pub fn take(&mut self, now: Instant, messages: usize) {
        let taken: Vec<_> = self.peeked.drain(..messages.min(self.peeked.len())).collect();
        if taken.is_empty() {
        } else if self.connection.take(now, taken.len()) {
            self.received.extend(taken);
        } else {
            self.too_late += taken.len() as u64;
        }
    }

    /// When something is to be done.
    pub fn next_moment(&self) -> Option<Instant> {
        self.timeout.filter(|_| !self.is_frozen)
    }

    /// A turn of its driver, that begins with what has arrived. `out` leads from it; none where there is no link.
    pub fn serve(&mut self, now: Instant, out: Option<&mut Pipe>, driving: &mut Driving<'_>) {
        if self.is_frozen {
            return;
        }
        let mut input = &mem::take(&mut self.socket.buffer)[..];
        while !input.is_empty() {
            let length = if driving.splits { 1 + driving.dice.below(input.len() as u64) as usize } else { input.len() };
            let starts = driving.places && self.takes && self.peeked.is_empty() && driving.dice.below(2) == 0;
            let placed = if starts || self.placed.is_some() { self.place(now, &input[..length]) } else { 0 };
            let (chunk, rest) = input.split_at(if placed > 0 { placed } else { length });
            if placed == 0 {
                let may_pass = driving.places && self.takes && self.placed.is_none() && self.peeked.is_empty();
                let passes = may_pass && driving.dice.below(2) == 0;
                match passes.then(|| self.connection.handle_message(now, chunk)).flatten() {
                    Some(message) => self.received.push(message.to_vec()),
                    None => self.connection.handle_input(now, chunk),
                }
            }
            input = rest;
        }
        if self.socket.fin_arrived || self.socket.reset_arrived || driving.dice.below(16) == 0 {
            self.take_back(now);
        }
        if mem::take(&mut self.socket.fin_arrived) {
            self.connection.handle_end(now);
        }
        if mem::take(&mut self.socket.reset_arrived) {
            self.connection.handle_reset(now);
        }
        if self.timeout.is_some_and(|due| now >= due) {
            self.connection.handle_timeout(now);
        }
        self.turn(now, out, driving);
    }

    /// Takes, transmits, acts and listens, as the core's contract has it.
    pub fn turn(&mut self, now: Instant, mut out: Option<&mut Pipe>, driving: &mut Driving<'_>) {
        loop {
            if self.takes {
                self.take(now, usize::MAX);
                while self.peek() {
                    self.take(now, 1);
                }
            }
            if self.grants && self.connection.budget_wanted() > 0 {
                self.connection.grant_budget();
            }
            let out = out.as_deref_mut().filter(|_| !self.socket.is_over);
            let Some(out) = out else {
                while self.connection.poll_action().is_some() {}
                break;
            };
            transmit(now, &mut self.connection, out, driving);
            match self.connection.poll_action() {
                None => break,
                Some(Action::Look) => {
                    self.looks += 1;
                    let view = (!self.is_blind).then(|| out.view(now));
                    self.connection.handle_kernel(now, view);
                }
                Some(Action::ShutdownWrite) => out.end(now),
                Some(Action::Abort) => {
                    (self.socket.is_over, self.aborted) = (true, true);
                    out.reset(now);
                }
                Some(Action::Close) => {
                    self.socket.is_over = true;
                    out.end(now);
                }
            }
        }
        while let Some(event) = self.connection.poll_event() {
            match event {
                Event::Hello(_) if self.accepts => self.connection.accept(CREDENTIALS, ms(60_000)),
                Event::Parted { .. } => self.give_room_back(now),
                _ => {}
            }
            self.events.push((now, event));
        }
        if let Some(out) = out.filter(|_| !self.socket.is_over) {
            transmit(now, &mut self.connection, out, driving);
        }
        self.timeout = self.connection.poll_timeout().map(Moment::instant);
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

fn transmit(now: Instant, connection: &mut Connection, out: &mut Pipe, driving: &mut Driving<'_>) {
    loop {
        let Transmit { first, control, data } = connection.poll_transmit(now);
        let whole = first.len() + control.len() + data.len();
        let length = whole.min(driving.kernel_bytes.saturating_sub(out.in_flight_bytes));
        let most = 1 + driving.dice.below(length as u64 * 2) as usize;
        let length = if driving.splits { length.min(most) } else { length };
        if length == 0 {
            return;
        }
        let mut bytes = Vec::with_capacity(length);
        for part in [first, control, data] {
            bytes.extend_from_slice(&part[..part.len().min(length - bytes.len())]);
        }
        connection.transmitted(now, length);
        out.carry(now, &bytes);
    }
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
        let introduction = Introduction { client_id: "device-7".into(), ..Introduction::default() };
        Self::introduced(client, server, seed, introduction)
    }

    pub fn introduced(client: Config, server: Config, seed: u64, introduction: Introduction) -> Self {
        let now = Instant::now();
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
            assert!(side.time_of(|event| matches!(event, Event::Opened(_))).is_some(), "{:?}", side.events);
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
        let [first, second] = &self.pipes;
        let pipes = [first.next_moment(second.is_cut), second.next_moment(first.is_cut)];
        let sides = self.sides.iter().filter(|side| !side.socket.is_over).map(Side::next_moment);
        pipes.into_iter().chain(sides).flatten().min()
    }

    /// What is due on the pipe that leads to side `index`.
    fn arrive(&mut self, index: usize) {
        let back = &self.pipes[index];
        let back = (back.is_cut, back.latency);
        self.pipes[1 - index].arrive(self.now, back, &mut self.sides[index].socket);
    }

    fn act(&mut self, index: usize, act: fn(&mut Side, Instant, Option<&mut Pipe>, &mut Driving<'_>)) {
        let &mut Self { splits, places, kernel_bytes, .. } = self;
        let mut driving = Driving { splits, places, dice: &mut self.dice, kernel_bytes };
        act(&mut self.sides[index], self.now, Some(&mut self.pipes[index]), &mut driving);
    }

    /// A turn of the driver of side `index`.
    pub fn serve(&mut self, index: usize) {
        if !self.sides[index].socket.is_over {
            self.act(index, Side::serve);
        }
    }

    /// Takes, transmits, acts and listens, as the core's contract has it.
    pub fn turn(&mut self, index: usize) {
        self.act(index, Side::turn);
    }

    pub fn send(&mut self, index: usize, message: &[u8]) {
        self.sides[index].connection.send(message).expect("there is room");
        self.turn(index);
    }

    /// A client without a link comes back over a new one, and the server says what it makes of that.
    pub fn relink(&mut self, config: Config, seed: u64) {
        let now = self.now;
        let [client, server] = &mut self.sides;
        if !client.connection.is_away() {
            return;
        }
        client.connection.relink(now, seed);
        let hello = client.connection.poll_transmit(now).first.to_vec();
        client.connection.transmitted(now, hello.len());
        let mut newcomer = Connection::server(now, config.into(), seed + 1);
        newcomer.handle_input(now, &hello);
        if server.connection.resume(now, &mut newcomer).is_ok() {
            (client.socket, server.socket) = Default::default();
            for pipe in &mut self.pipes {
                *pipe = Pipe::with_latency(pipe.latency);
            }
        } else {
            client.connection.handle_reset(now);
        }
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
