# A guest of a dozen instructions, entered by PVH: it prints one line on COM1 and waits for ever.
# `make bench` assembles it; every VMM that is compared runs this same file.

.section .note.Xen, "a", @note
        .balign 4
        .long   4, 8, 18                # name size, descriptor size, XEN_ELFNOTE_PHYS32_ENTRY
        .asciz  "Xen"
        .quad   start

.section .text, "ax"
.code32
.globl start
start:
        movl    $line, %esi
        movw    $0x3f8, %dx
next:   movb    (%esi), %al
        testb   %al, %al
        jz      wait
        outb    %al, %dx
        incl    %esi
        jmp     next
wait:   cli
        hlt
        jmp     wait

line:   .asciz  "payload: up\n"
