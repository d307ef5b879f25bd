//! The recordings of tests/rust/record.py, row by row.

#![allow(dead_code, unreachable_pub, reason = "each test file uses its part of this module")]

use std::collections::HashMap;
use std::time::Duration;

use longconn::proto::verdict::{Sample, TcpState};

#[derive(Debug)]
pub struct Row {
    /// Since the cut, or since the start where nothing is cut.
    pub at_ms: i64,
    columns: HashMap<String, String>,
}

pub fn rows(name: &str) -> Vec<Row> {
    let path = format!("{}/tests/rust/recorded/{name}.csv", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(path).unwrap();
    let mut lines = text.lines().filter(|line| !line.starts_with('#'));
    let names: Vec<&str> = lines.next().unwrap().split(',').collect();
    lines
        .map(|line| {
            let columns: HashMap<String, String> =
                names.iter().copied().map(String::from).zip(line.split(',').map(String::from)).collect();
            Row { at_ms: columns["at_ms"].parse().unwrap(), columns }
        })
        .collect()
}

impl Row {
    pub fn number(&self, name: &str) -> u64 {
        self.columns[name].parse().unwrap()
    }

    pub fn sample(&self) -> Sample {
        let small = |name: &str| u32::try_from(self.number(name)).unwrap();
        let ms = |name: &str| Duration::from_millis(self.number(name));
        let state = (0..=12).map(TcpState::from_kernel).find(|state| state.name() == self.columns["state"]).unwrap();
        Sample {
            state,
            unacked: small("unacked_segments"),
            probes: small("probes"),
            total_retrans: small("retransmitted_segments"),
            timeouts: small("retransmits"),
            unsent: small("unsent_bytes"),
            bytes_acked: self.number("bytes_acked"),
            bytes_received: self.number("bytes_received"),
            segments_in: small("segments_in"),
            data_segments_in: small("data_segments_in"),
            out_of_order_in: small("out_of_order_segments"),
            send_window: Some(small("send_window_bytes")),
            receive_window: Some(small("receive_window_bytes")),
            since_data_sent: ms("last_data_sent_ms"),
            since_data_received: ms("last_data_received_ms"),
            since_ack_received: ms("last_ack_received_ms"),
            round_trip: Duration::from_micros(self.number("round_trip_us")),
        }
    }
}
