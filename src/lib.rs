//! Nestling turns one Kubernetes pod into one microVM.
//!
//! The map of the house, top to bottom. What the user asks for flows down into one machine; facts flow up into one
//! status. Each room imports only rooms below it.
//!
//! | room | what happens there |
//! |---|---|
//! | [`cli`] | one file per subcommand; parses, calls, prints |
//! | [`agent`] | one VM's life inside the pod: states, signals, exit codes |
//! | [`guest`] | the host's end of the channel to the agent in the guest |
//! | [`preflight`] | checks of this node and this pod, each ending in a finding that says what mends it |
//! | [`vmm`] | the machine: memory, vCPU threads, interrupts, assembly. Knows KVM, knows nothing of pods |
//! | [`boot`] | kernel formats, boot parameters, ACPI tables, command line: functions over guest memory |
//! | [`devices`] | the bus, PCI, virtio and the few platform devices |
//! | [`backend`] | the host side of a device: disk files, console sinks. No guest memory, no KVM |
//! | [`status`] | the status model, events, metrics, the socket server and its client |
//! | [`spec`] | what the user wrote (YAML or flags), turned into a validated machine plan |
//! | [`x86`] | memory map, CPUID, MSRs, registers: data and functions without state |

pub mod agent;
pub mod backend;
pub mod boot;
pub mod cli;
pub mod devices;
pub mod guest;
pub mod preflight;
pub mod spec;
pub mod status;
pub mod vmm;
pub mod x86;
