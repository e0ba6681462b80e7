//! Guests and programs that do anything in any order.

use proptest::prelude::*;

use super::*;
use crate::devices::virtio::vsock::muxer::MOST_RESETS;

const LIMIT: usize = 6;

#[derive(Debug, Clone)]
enum Action {
    Guest { header: Header, data: usize },
    Offer(u16),
    Knock(Vec<u8>),
    Program { which: usize, what: Deed },
    Wait(u64),
    Rest,
}

#[derive(Debug, Clone, Copy)]
enum Deed {
    Write(usize),
    Read(usize),
    Finish,
    Close,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![8 => 1_u16..=7, 1 => any::<u16>()].prop_map(Op::from)
}

/// Few ports, so that packets meet connections; counters that are often right.
fn header() -> impl Strategy<Value = (Header, usize)> {
    let host_port =
        prop_oneof![4 => Just(80_u32), 2 => (0_u32..8).prop_map(|port| (1 << 30) + port), 1 => any::<u32>()];
    let cids = prop_oneof![30 => Just((CID, HOST_CID)), 1 => any::<(u64, u64)>()];
    let counter = || prop_oneof![3 => Just(0_u32), 2 => 0..5000_u32, 1 => any::<u32>()];
    let kind = prop_oneof![30 => Just(TYPE_STREAM), 1 => any::<u16>()];
    let alloc = prop_oneof![3 => Just(BUF_ALLOC), 1 => any::<u32>()];
    let ports = (0_u32..3, host_port);
    let sizes = (0_usize..5000, prop_oneof![10 => Just(None), 1 => any::<u32>().prop_map(Some)]);
    (cids, ports, op(), kind, any::<u32>(), alloc, counter(), sizes).prop_map(
        |((src_cid, dst_cid), (src_port, dst_port), op, kind, flags, buf_alloc, fwd_cnt, (data, lie))| {
            let len = lie.unwrap_or(if op == Op::Data { data as u32 } else { 0 });
            let header =
                Header { src_cid, dst_cid, src_port, dst_port, len, kind, op, flags, buf_alloc, fwd_cnt };
            (header, data)
        },
    )
}

fn action() -> impl Strategy<Value = Action> {
    let deed = prop_oneof![
        (1_usize..9000).prop_map(Deed::Write),
        (1_usize..9000).prop_map(Deed::Read),
        Just(Deed::Finish),
        Just(Deed::Close),
    ];
    let greeting = prop_oneof![
        3 => (0_u32..3).prop_map(|port| format!("CONNECT {port}\n").into_bytes()),
        1 => prop::collection::vec(any::<u8>(), 0..50),
    ];
    prop_oneof![
        10 => header().prop_map(|(header, data)| Action::Guest { header, data }),
        4 => (1_u16..8).prop_map(Action::Offer),
        2 => greeting.prop_map(Action::Knock),
        6 => (any::<usize>(), deed).prop_map(|(which, what)| Action::Program { which, what }),
        1 => (0_u64..20_000).prop_map(Action::Wait),
        1 => Just(Action::Rest),
    ]
}

impl Fixture {
    fn act(&mut self, action: &Action, knocked: &mut Vec<Program>) {
        match action {
            Action::Guest { header, data } => {
                let pending = usize::from(self.tx.available()) - self.tx.used().len();
                if pending < 8 {
                    self.queue(header, &vec![5; *data]);
                }
            }
            Action::Offer(count) => {
                let free = RING - (self.rx.available() - self.rx.used().len() as u16);
                self.offer((*count).min(free));
            }
            Action::Knock(greeting) => {
                let (program, end) = PairHost::pair();
                program.write(greeting);
                self.muxer.knock(end, self.now);
                knocked.push(program);
            }
            Action::Program { which, what } => {
                let all: Vec<Program> = knocked.iter().chain(&self.muxer.host().programs).cloned().collect();
                if let Some(program) = all.get(which % all.len().max(1)) {
                    match what {
                        Deed::Write(count) => program.write(&vec![6; *count]),
                        Deed::Read(count) => drop(program.read(*count)),
                        Deed::Finish => program.finish_sending(),
                        Deed::Close => program.close(),
                    }
                }
            }
            Action::Wait(millis) => self.wait(Duration::from_millis(*millis)),
            Action::Rest => {
                self.muxer.rest(self.now);
                self.now += Duration::from_secs(100);
                self.muxer.wake(self.now);
            }
        }
        self.serve().unwrap();
        self.host_events();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever packets say, nothing breaks, everything is bounded, and when both sides have gone nothing is left.
    #[test]
    fn whatever_is_said_nothing_breaks_and_nothing_is_left(actions in prop::collection::vec(action(), 1..80)) {
        let mut test = with_limit(LIMIT);
        test.muxer.host().serve(80);
        let mut knocked = Vec::new();
        for action in &actions {
            test.act(action, &mut knocked);
            test.got();
            let size = test.muxer.size();
            prop_assert!(size.entries <= LIMIT && size.in_line <= LIMIT && size.resets <= MOST_RESETS);
            prop_assert!(size.ports <= size.entries && size.alarms <= size.entries);
            prop_assert!(size.kept <= size.allowed && size.allowed <= (LIMIT as u64) << 18);
        }
        for program in knocked.iter().chain(&test.muxer.host().programs.clone()) {
            program.close();
        }
        for _ in 0..40 {
            let free = RING - (test.rx.available() - test.rx.used().len() as u16);
            test.offer(free.min(16));
            test.got();
            test.wait(Duration::from_secs(60));
        }
        let size = test.muxer.size();
        prop_assert_eq!((size.entries, size.ports, size.alarms, size.resets, size.allowed), (0, 0, 0, 0, 0));
        prop_assert_eq!(test.counted()[0], 0);
    }
}
