package vmm

import (
	"strings"
	"testing"

	"github.com/boxlite-oci/boxlite/internal/golden"
	"github.com/boxlite-oci/boxlite/libvm/accel"
	"github.com/boxlite-oci/boxlite/libvm/plan"
)

func TestQEMUArgsGolden(t *testing.T) {
	base := Config{
		accel: accel.TCG, kernel: "/lib/vmlinux-lean", initramfs: "/lib/initramfs.cpio", memoryMiB: 1024, vcpus: 2,
	}
	kvm := base
	kvm.accel, kvm.vcpus, kvm.growthMiB, kvm.verbose, kvm.scratch = accel.KVM, 8, 4096, true, true
	incoming := base
	incoming.incoming = true
	standby := incoming
	standby.standby = true
	rate := base
	rate.tscKHz = 2445404
	own := base
	own.kernel, own.machine = "/boot/vmlinux", plan.Machine{QEMUParameters: []string{"-name", "mine"}, KernelParameters: []string{"a=b", "c"}}
	for name, cfg := range map[string]Config{"tcg": base, "kvm-verbose": kvm, "tcg-incoming": incoming, "tcg-standby": standby, "tcg-rate": rate, "vm-object": own} {
		t.Run(name, func(t *testing.T) {
			golden.Compare(t, "qemu-"+name+".args", []byte(strings.Join(cfg.args(), "\n")+"\n"))
		})
	}
}

func TestQuoteCommand(t *testing.T) {
	got := quoteCommand("/usr/bin/qemu", []string{"-append", "console=hvc0 quiet", "it's", ""})
	if want := `/usr/bin/qemu -append 'console=hvc0 quiet' 'it'\''s' ''`; got != want {
		t.Errorf("quoteCommand = %s, want %s", got, want)
	}
}
