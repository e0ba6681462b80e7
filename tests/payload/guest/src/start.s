# From the PVH entry (32-bit, paging off) or a startup IPI (16-bit) to Rust code in ring 3.
#
# Rust runs in ring 3: there it may use every instruction the compiler likes, at native speed even where the KVM backend
# emulates ring 0 instruction by instruction. What needs ring 0 is a few lines here, behind `gate`: a ud2 whose exception
# handler does the operation and returns. (Ports too: such a backend does not know IOPL.)

.set KERNEL_CODE, 0x10
.set KERNEL_DATA, 0x18
.set USER_DATA, 0x20 | 3
.set USER_CODE, 0x28 | 3
.set FIRST_TSS, 0x30
.set MAX_CPUS, 32
.set TSS_BASE, 0x3000
.set TSS_SIZE, 0x68
.set TRAMPOLINE, 0x1000
.set KERNEL_STACK_SHIFT, 12
.set USER_STACK_SHIFT, 15
.set LAPIC_EOI, 0xfee000b0

.section .note.pvh, "a", @note
    .balign 4
    .long 4, 4, 18                  # name size, descriptor size, XEN_ELFNOTE_PHYS32_ENTRY
    .asciz "Xen"
    .long pvh_start

.section .start, "awx", @progbits
.code32
.global pvh_start
pvh_start:
    cld
    movl %ebx, boot_start_info
    xorl %ebp, %ebp                 # CPU number 0
    jmp enter_long_mode

application_processor:
    movw $KERNEL_DATA, %ax
    movw %ax, %ds
    movw %ax, %es
    movw %ax, %ss
    movl $1, %ebp
    lock xaddl %ebp, next_cpu       # CPU number in the order of arrival

enter_long_mode:
    movl $0x620, %eax               # PAE, OSFXSR, OSXMMEXCPT
    movl %eax, %cr4
    movl $pml4, %eax
    movl %eax, %cr3
    movl $0xc0000080, %ecx          # EFER
    rdmsr
    orl $0x100, %eax                # LME
    wrmsr
    movl $0x80000033, %eax          # PG, NE, ET, MP, PE
    movl %eax, %cr0
    lgdt gdt_pointer
    ljmp $KERNEL_CODE, $long_mode

.code64
long_mode:
    movl $KERNEL_DATA, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    leal 1(%rbp), %esp
    shll $KERNEL_STACK_SHIFT, %esp
    addl $kernel_stacks, %esp
    imull $TSS_SIZE, %ebp, %eax
    movl %esp, TSS_BASE + 4(%rax)   # RSP0: the stack of exceptions and interrupts in ring 3
    leal (, %rbp, 8), %eax
    leal FIRST_TSS(, %rax, 2), %eax
    ltr %ax
    lidt idt_pointer
    leal 1(%rbp), %edx
    shll $USER_STACK_SHIFT, %edx
    addl $user_stacks - 8, %edx     # as after a call
    movl %ebp, %edi
    pushq $USER_DATA
    pushq %rdx
    pushq $2                        # interrupts off
    pushq $USER_CODE
    pushq $rust_start
    iretq

# Any exception but the gate's: on to Rust, with what happened.
exception:
    popq %rdi                       # vector
    popq %rsi                       # error code
    movq (%rsp), %rdx               # where
    movq %cr2, %rcx
    pushq $USER_DATA
    pushq $exception_stack_top - 8
    pushq $2
    pushq $USER_CODE
    pushq $rust_exception
    iretq

# Any interrupt: count it, say it is done.
interrupt:
    lock incl interrupt_counts(, %rax, 4)
    movl $LAPIC_EOI, %eax
    movl $0, (%rax)
    popq %rax
    iretq

invalid_opcode:
    pushq %rcx
    leaq gate(%rip), %rcx
    cmpq %rcx, 8(%rsp)
    popq %rcx
    je 1f
    pushq $0
    pushq $6
    jmp exception
1:  addq $2, (%rsp)
    jmpq *gate_operations(, %rdi, 8)

# gate(operation, a, b)
.global gate
gate:
    ud2
    ret

halt_while_equal:                   # a: address of a u32, b: value. No interrupt can slip in between test and hlt.
    cmpl %edx, (%rsi)
    jne 1f
    sti
    hlt
    cli
1:  iretq
read_msr:
    movl %esi, %ecx
    rdmsr
    shlq $32, %rdx
    orq %rdx, %rax
    iretq
write_msr:
    movl %esi, %ecx
    movq %rdx, %rax
    shrq $32, %rdx
    wrmsr
    iretq
cpu_id:                             # a: leaf and subleaf << 32, b: where eax, ebx, ecx, edx go
    pushq %rbx
    movq %rdx, %r8
    movl %esi, %eax
    movq %rsi, %rcx
    shrq $32, %rcx
    cpuid
    movl %eax, (%r8)
    movl %ebx, 4(%r8)
    movl %ecx, 8(%r8)
    movl %edx, 12(%r8)
    popq %rbx
    iretq
set_interrupts:                     # a: 1 on, 0 off
    andl $~0x200, 16(%rsp)
    shll $9, %esi
    orl %esi, 16(%rsp)
    iretq
spin:
    jmp spin
halt_forever:
    cli
    hlt
    jmp halt_forever
triple_fault:
    lidt no_idt
    ud2
jump:                               # a: where
    jmpq *%rsi
port_in:                            # a: port
    movl %esi, %edx
    inb %dx, %al
    iretq
port_out:                           # a: port, b: byte
    movl %edx, %eax
    movl %esi, %edx
    outb %al, %dx
    iretq
port_out_word:
    movl %edx, %eax
    movl %esi, %edx
    outw %ax, %dx
    iretq
port_out_string:                    # a: port and length << 16, b: address
    movl %esi, %ecx
    shrl $16, %ecx
    xchgl %esi, %edx
    rep outsb
    iretq
port_in_string:                     # a: port and length << 16, b: address
    movl %esi, %ecx
    shrl $16, %ecx
    movq %rdx, %rdi
    movl %esi, %edx
    rep insb
    iretq

.balign 8
gate_operations:
    .quad halt_while_equal, read_msr, write_msr, cpu_id, set_interrupts, spin, halt_forever, triple_fault, jump
    .quad port_in, port_out, port_out_word, port_out_string, port_in_string

# 256 stubs of 16 bytes.
.macro stub vector
    .balign 16
    .if \vector == 6
        jmp invalid_opcode
    .elseif \vector >= 32
        pushq %rax
        movl $\vector, %eax
        jmp interrupt
    .elseif (\vector == 8) | ((\vector >= 10) & (\vector <= 14)) | (\vector == 17) | (\vector == 21)
        pushq $\vector
        jmp exception
    .else
        pushq $0
        pushq $\vector
        jmp exception
    .endif
.endm
.balign 16
.global interrupt_stubs
interrupt_stubs:
.altmacro
.set number, 0
.rept 256
    stub %number
    .set number, number + 1
.endr
.noaltmacro

# Copied to TRAMPOLINE, where a startup IPI starts the other CPUs.
.code16
.global trampoline_start
trampoline_start:
    cli
    xorw %ax, %ax
    movw %ax, %ds
    lgdtl (TRAMPOLINE + trampoline_gdt - trampoline_start)
    movl %cr0, %eax
    orl $1, %eax
    movl %eax, %cr0
    ljmpl $8, $application_processor
trampoline_gdt:
    .word gdt_end - gdt - 1
    .long gdt
.global trampoline_end
trampoline_end:
.code64

