//! A program to try the node with: `probe kvm`, `probe exit 7`, `probe hang`, `probe flood BYTES`, and so on.

use std::error::Error;
use std::io::Write;
use std::time::Duration;

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::{Kvm, VcpuExit};

fn main() -> Result<(), Box<dyn Error>> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words[..] {
        ["kvm"] => kvm(),
        ["exit", code] => std::process::exit(code.parse()?),
        ["abort"] => std::process::abort(),
        ["hang"] => loop {
            std::thread::sleep(Duration::from_secs(3600));
        },
        ["flood", bytes] => flood(bytes.parse()?),
        ["write", path, bytes] => {
            Ok(std::fs::write(path, pattern().take(bytes.parse()?).collect::<Vec<u8>>())?)
        }
        ["read", path] => read(path),
        ["orphan"] => orphan(),
        ["show"] => show(),
        _ => {
            Err("usage: probe kvm|exit N|abort|hang|flood BYTES|write PATH BYTES|read PATH|orphan|show"
                .into())
        }
    }
}

/// Creates a VM with one vCPU, lets it write a greeting to a port and halt.
fn kvm() -> Result<(), Box<dyn Error>> {
    // mov dx,0x3f8; mov si,0x100b; mov cx,6; rep outsb; hlt; the text
    const CODE: &[u8] = b"\xba\xf8\x03\xbe\x0c\x10\xb9\x06\x00\xf3\x6e\xf4hello\n";
    let kvm = Kvm::new()?;
    println!("KVM API version {}", kvm.get_api_version());
    let vm = kvm.create_vm()?;
    let memory: &'static mut Page = Box::leak(Box::new(Page([0; 4096])));
    memory.0[..CODE.len()].copy_from_slice(CODE);
    let region = kvm_userspace_memory_region {
        guest_phys_addr: 0x1000,
        memory_size: 4096,
        userspace_addr: (&raw const memory.0).addr() as u64,
        ..Default::default()
    };
    // SAFETY: the page is never freed, and nobody else uses it.
    unsafe { vm.set_user_memory_region(region)? };
    let mut vcpu = vm.create_vcpu(0)?;
    let mut system = vcpu.get_sregs()?;
    for segment in [&mut system.cs, &mut system.ds] {
        segment.base = 0;
        segment.selector = 0;
    }
    vcpu.set_sregs(&system)?;
    let mut registers = vcpu.get_regs()?;
    registers.rip = 0x1000;
    registers.rflags = 2;
    vcpu.set_regs(&registers)?;
    let mut greeting = Vec::new();
    loop {
        match vcpu.run()? {
            VcpuExit::IoOut(0x3f8, bytes) => greeting.extend_from_slice(bytes),
            VcpuExit::Hlt => break,
            other => return Err(format!("unexpected exit {other:?}").into()),
        }
    }
    print!("the nested guest says: {}", String::from_utf8(greeting)?);
    Ok(())
}

#[repr(align(4096))]
struct Page([u8; 4096]);

/// Bytes of all values, in an order that shows what is lost.
fn pattern() -> impl Iterator<Item = u8> {
    (0u64..).map(|i| (i ^ (i >> 8) ^ (i >> 16)) as u8)
}

fn flood(bytes: usize) -> Result<(), Box<dyn Error>> {
    let all: Vec<u8> = pattern().take(bytes).collect();
    Ok(std::io::stdout().write_all(&all)?)
}

fn read(path: &str) -> Result<(), Box<dyn Error>> {
    let content = std::fs::read(path)?;
    println!("{path}: {} bytes, sum {}", content.len(), content.iter().map(|b| u64::from(*b)).sum::<u64>());
    Ok(())
}

/// Ends while a child that holds our output lives on.
fn orphan() -> Result<(), Box<dyn Error>> {
    std::process::Command::new(std::env::current_exe()?).arg("hang").spawn()?;
    println!("leaving a child behind");
    Ok(())
}

fn show() -> Result<(), Box<dyn Error>> {
    println!("in {}", std::env::current_dir()?.display());
    for (name, value) in std::env::vars_os() {
        println!("{}={}", name.display(), value.display());
    }
    eprintln!("this is standard error");
    Ok(())
}
