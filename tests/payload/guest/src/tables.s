# The tables `start.s` loads: GDT with a TSS per CPU, page tables; and room for the IDT, counters and stacks.

.section .data.start, "aw", @progbits
.balign 8
gdt_pointer:
    .word gdt_end - gdt - 1
    .quad gdt
idt_pointer:
    .word 4095
    .quad interrupt_descriptors
no_idt:
    .word 0
    .quad 0
.global boot_start_info
boot_start_info:
    .long 0
next_cpu:
    .long 1
.balign 8
gdt:
    .quad 0
    .quad 0x00cf9b000000ffff        # 32-bit code
    .quad 0x00af9b000000ffff        # 64-bit code
    .quad 0x00cf93000000ffff        # data
    .quad 0x00cff3000000ffff        # ring 3 data
    .quad 0x00affb000000ffff        # ring 3 64-bit code
.set tss, TSS_BASE
.rept MAX_CPUS
    .quad 0x0000890000000000 + (tss << 16) + TSS_SIZE - 1
    .quad 0
    .set tss, tss + TSS_SIZE
.endr
gdt_end:

# The first 8 GiB one to one in 2 MiB pages: present, writable, user, accessed, dirty.
.balign 4096
pml4:
    .quad pdpt + 0x27
    .zero 4088
pdpt:
.set number, 0
.rept 8
    .quad page_directories + number * 4096 + 0x27
    .set number, number + 1
.endr
    .zero 4032
page_directories:
.set page, 0xe7
.rept 8 * 512
    .quad page
    .set page, page + 0x200000
.endr

.section .bss.start, "aw", @nobits
.balign 4096
.global interrupt_descriptors
interrupt_descriptors:
    .zero 4096
.global interrupt_counts
interrupt_counts:
    .zero 1024
kernel_stacks:
    .zero MAX_CPUS << KERNEL_STACK_SHIFT
user_stacks:
    .zero MAX_CPUS << USER_STACK_SHIFT
exception_stack:
    .zero 16384
exception_stack_top:
.text
