package vmm

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/boxlite-oci/boxlite/internal/guestproto"
	"github.com/boxlite-oci/boxlite/libvm/accel"
	"github.com/boxlite-oci/boxlite/libvm/plan"
)

// The descriptors that QEMU inherits, in this order.
const (
	shareFD   = iota + 3 // vhost-user socket of virtiofsd
	controlFD            // the guest's control port
	qmpFD
	consoleFD // the guest's console, written by the guest only
	scratchFD // raw image of the scratch disk
	// A standby VM has no scratch disk.
	handoverFD = scratchFD // QMP for the monitor to come
)

// Config is everything that shapes a QEMU command line.
type Config struct {
	accel     accel.Accel
	firmware  string // path of a firmware that boots faster than QEMU's default, or empty
	kernel    string // path of a vmlinux
	initramfs string
	memoryMiB int
	growthMiB int // what can be plugged in later; zero for nothing
	vcpus     int
	verbose   bool // the kernel says on the console how it boots
	machine   plan.Machine

	// tscKHz is the rate of the host's time stamp counter, for a guest that boots;
	// zero lets the guest's kernel measure it. It is no part of a template's
	// identity: the host's boot id, which is, stands for it.
	tscKHz int

	// scratch adds a disk that is the raw image scratchFD.
	scratch bool

	// incoming has QEMU wait for the state of a saved VM. All else is as it was
	// in the VM that was saved.
	incoming bool

	// standby gives QEMU a second QMP connection, for whoever the VM will be.
	standby bool
}

// args is the command line of QEMU 7.2 or later, without the program's name.
func (c *Config) args() []string {
	args := []string{
		"-nodefaults", "-no-user-config", "-no-reboot", "-display", "none",
		"-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
		"-machine", "q35,memory-backend=ram,hpet=off,smbus=off,sata=off,usb=off,vmport=off,i8042=off,graphics=off,smm=off,dump-guest-core=off",
		"-accel", c.accelArg(),
		"-cpu", c.cpu(),
		"-smp", strconv.Itoa(c.vcpus),
		"-m", c.memory(),
		"-object", "memory-backend-file,id=ram,mem-path=" + memoryPath + ",share=on,size=" + strconv.Itoa(c.memoryMiB) + "M",
		"-kernel", c.kernel,
		"-initrd", c.initramfs,
		"-append", c.commandLine(),
	}
	if c.firmware != "" {
		args = append(args, "-bios", c.firmware)
	}
	args = append(args, socketChardev("qmp", qmpFD), "-mon", "chardev=qmp,mode=control")
	if c.standby {
		args = append(args, socketChardev("handover", handoverFD), "-mon", "chardev=handover,mode=control")
	}
	args = append(args, c.ports()...)
	args = append(args, socketChardev("share", shareFD)) // of the device that PlugShare adds
	args = append(args, c.scratchDisk()...)
	args = append(args, virtio("rng", "rng=entropy")...)
	args = append(args, "-object", "rng-random,id=entropy,filename=/dev/urandom")
	args = append(args, virtio("balloon", "free-page-reporting=on")...)
	for i := range hotplugPorts {
		args = append(args, "-device", fmt.Sprintf("pcie-root-port,id=%s,bus=pcie.0,chassis=%d,addr=%#x.%d,multifunction=on",
			portID(i), i+1, 0x10, i))
	}
	if c.incoming {
		args = append(args, "-incoming", "defer")
	}
	return append(flatten(args), c.machine.QEMUParameters...)
}

// memory is the VM's size, and how far it may grow; see GrowMemory.
func (c *Config) memory() string {
	size := strconv.Itoa(c.memoryMiB) + "M"
	if c.growthMiB > 0 {
		size += ",maxmem=" + strconv.Itoa(c.memoryMiB+c.growthMiB) + "M"
	}
	return size
}

// ports is the control port and, beside it, the console. There can be no more:
// each port has two queues with an eventfd that QEMU's main loop polls at every
// event, used or not, and by default there are 31.
func (c *Config) ports() []string {
	return append(virtio("serial", "id=serial,max_ports="+strconv.Itoa(serialPorts)),
		socketChardev("control", controlFD),
		"-device", "virtserialport,bus=serial.0,id="+controlID+",chardev=control,name="+guestproto.ControlPort,
		socketChardev("console", consoleFD),
		"-device", "virtconsole,bus=serial.0,chardev=console")
}

const serialPorts = 2

// controlID is the control port's name in events.
const controlID = "control"

// scratchDisk is one that nobody looks at after the VM, so what the guest
// flushes need not reach the host's disk.
func (c *Config) scratchDisk() []string {
	if !c.scratch {
		return nil
	}
	return append([]string{
		"-add-fd\x00set=0,fd=" + strconv.Itoa(scratchFD),
		"-blockdev\x00driver=raw,node-name=scratch,discard=unmap,detect-zeroes=unmap,cache.no-flush=on," +
			"file.driver=file,file.filename=/dev/fdset/0,file.locking=off,file.discard=unmap,file.cache.no-flush=on",
	},
		virtio("blk", "drive=scratch")...)
}

// socketChardev is one argument pair, kept together until flatten.
func socketChardev(id string, fd int) string {
	return fmt.Sprintf("-chardev\x00socket,id=%s,fd=%d", id, fd)
}

func flatten(args []string) []string {
	return strings.Split(strings.Join(args, "\x00"), "\x00")
}

// virtio is a modern-only virtio PCI device.
func virtio(kind, options string) []string {
	device := "virtio-" + kind + "-pci,disable-legacy=on"
	if options != "" {
		device += "," + options
	}
	return []string{"-device", device}
}

func portID(i int) string { return "port" + strconv.Itoa(i) }

func (c *Config) accelArg() string {
	if c.accel == accel.KVM {
		return "kvm"
	}
	return "tcg,thread=multi"
}

func (c *Config) cpu() string {
	if c.accel == accel.KVM {
		return kvmCPU
	}
	return tcgCPU
}

// kvmCPU leaves out what would let a guest make VMs of its own: its kernels
// cannot, and a guest's kernel in other hands shall not reach that part of the
// host's KVM.
const kvmCPU = "host,-vmx,-svm"

// tcgCPU is all that TCG can do but what costs more than it gives: the model
// lets the kernel trust the TSC, and the features taken away are those that end
// translation blocks, enlarge the state or are slow loops. Programs built for
// x86-64-v3 run. The table in kernels/README.md, "Boot", has the figures.
const tcgCPU = "max,vendor=GenuineIntel,family=6,model=94,stepping=3,model-id=boxlite,-svm,-smap,-mpx,-pku,-la57,-erms,-fsrm"

// commandLine is the guest kernel's. kernels/README.md, "Boot", says what each
// word saves.
func (c *Config) commandLine() string {
	words := []string{
		"console=hvc0", "panic=-1", "lapic_timer_khz=1000000", "tsc=reliable", "no_timer_check",
		"random.trust_cpu=on", "memhp_default_state=online", "initcall_blacklist=jent_mod_init",
		// A container finds lo and its own interfaces, none that a driver makes unasked.
		"fb_tunnels=none", "bonding.max_bonds=0", "ifb.numifbs=0", "dummy.numdummies=0",
		"apparmor=0", // of Debian's kernel: programs inside would look for its tools
	}
	if c.vcpus == 1 {
		words = append(words, "noreplace-smp")
	}
	if c.accel == accel.TCG {
		// TCG keeps its translation of a page of code until it sees the page
		// written, and does not see what virtiofsd writes into it. Clearing each
		// page when it is allocated shows it, before another file's code comes.
		words = append(words, "init_on_alloc=1")
		if c.tscKHz > 0 { // under KVM kvm-clock tells
			words = append(words, "tsc_early_khz="+strconv.Itoa(c.tscKHz))
		}
	}
	if c.verbose {
		words = append(words, "loglevel=7")
	} else {
		words = append(words, "quiet", "loglevel=3")
	}
	return strings.Join(append(words, c.machine.KernelParameters...), " ")
}
