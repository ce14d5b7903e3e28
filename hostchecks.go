package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/moby/sys/userns"
	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"github.com/boxlite-oci/boxlite/libvm/accel"
	"github.com/boxlite-oci/boxlite/libvm/hostcgroup"
	"github.com/boxlite-oci/boxlite/libvm/hostnet"
	"github.com/boxlite-oci/boxlite/libvm/parts"
)

// host is what the checks look at.
type host struct {
	parts       parts.Options
	accel       string // as --accel
	templateDir string // as --template-dir, empty for the usual one
	uid         int
	inUserNS    bool
	// files are /proc and the like, without the slash.
	files fs.FS
}

func thisHost(c *cli.Context) *host {
	return &host{
		parts: partOptions(c), accel: c.String("accel"), templateDir: c.String("template-dir"),
		uid: os.Geteuid(), inUserNS: userns.RunningInUserNS(), files: os.DirFS("/"),
	}
}

func machineChecks(h *host) []check {
	return []check{
		{"user", func() (finding, error) { return finding{Found: h.user()}, nil }},
		{"acceleration", h.acceleration},
		{"QEMU", func() (finding, error) { return checkQEMU(h) }},
		{"virtiofsd", func() (finding, error) {
			v, err := parts.FindVirtiofsd(h.parts)
			return finding{Found: fmt.Sprintf("%s (the %s one)", v.Path, dialectName(v.Dialect))}, err
		}},
		{"kernels", func() (finding, error) { return checkKernels(h) }},
		{"templates", h.templates},
		{"open files", h.openFiles},
		{"user namespaces", h.userNamespaces},
		{"SELinux", h.selinux},
		{"network", h.network},
		{"bridge-nf", func() (finding, error) { return finding{Found: h.bridgeNF()}, nil }},
		{"cgroups", func() (finding, error) {
			version, err := hostcgroup.Host()
			if err != nil {
				err = fmt.Errorf("%w; mount them at /sys/fs/cgroup", err)
			}
			return finding{Found: version}, err
		}},
	}
}

// because is text if it holds.
func because(holds bool, text string) string {
	if holds {
		return text
	}
	return ""
}

func (h *host) user() string {
	switch {
	case h.uid != 0:
		return fmt.Sprintf("uid %d, root in a user namespace per container", h.uid)
	case h.inUserNS:
		return "root of a user namespace"
	default:
		return "root"
	}
}

// acceleration says whether guests run on the processor itself and, if they do not,
// what keeps them from it.
func (h *host) acceleration() (finding, error) {
	cpuinfo, _ := fs.ReadFile(h.files, "proc/cpuinfo") // without it nothing is known of the processor
	value, _ := accel.CPUInfo(bytes.NewReader(cpuinfo), "flags")
	flags := strings.Fields(value)
	a, reason, err := accel.Resolve(h.accel)
	switch {
	case err != nil && h.accel == string(accel.KVM):
		return finding{}, fmt.Errorf("%w; %s", err, kvmAdvice(flags, h.has("dev/kvm")))
	case err != nil:
		return finding{}, err
	case a == accel.KVM:
		nested := because(slices.Contains(flags, "hypervisor"), ", nested: this machine is a virtual one")
		return finding{Found: fmt.Sprintf("%s (%s)%s", a, reason, nested)}, nil
	}
	f := finding{Found: fmt.Sprintf("%s, emulation, several times slower (%s)", a, reason)}
	if h.accel != string(accel.TCG) {
		f.Advice = kvmAdvice(flags, h.has("dev/kvm"))
	}
	return f, nil
}

// kvmAdvice says how a machine may come by KVM, given its processor's flags and
// whether there is a /dev/kvm.
func kvmAdvice(flags []string, device bool) string {
	module := ""
	switch {
	case slices.Contains(flags, "vmx"):
		module = "kvm_intel"
	case slices.Contains(flags, "svm"):
		module = "kvm_amd"
	}
	switch {
	case runtime.GOARCH == "amd64" && module == "" && slices.Contains(flags, "hypervisor"):
		return "this machine is a virtual one: have its hypervisor allow nested virtualization, or use another machine"
	case runtime.GOARCH == "amd64" && module == "":
		return "switch VT-x or AMD-V on in the firmware"
	case !device:
		return "modprobe " + cmp.Or(module, "kvm")
	default:
		return "let this user open /dev/kvm (usermod -aG kvm USER, and a new login)"
	}
}

// leastForTemplates is room for those of lean and net, and one that is being made.
const leastForTemplates = 160 << 20

func (h *host) templates() (finding, error) {
	dir := cmp.Or(h.templateDir, runDir())
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return finding{Found: fmt.Sprintf("%s: %v", dir, err), Advice: "make " + dir + ", or name another by --template-dir: without one every VM boots"}, nil
	}
	if err := unix.Access(dir, unix.W_OK); err != nil {
		return finding{Found: dir + " is not this user's", Advice: "set XDG_RUNTIME_DIR, as a login does: it holds containers' state and saved VMs"}, nil
	}
	return roomForTemplates(dir, st.Bavail*uint64(st.Bsize)), nil
}

func roomForTemplates(dir string, free uint64) finding {
	f := finding{Found: fmt.Sprintf("%s has %d MiB free, a saved VM takes some 40", dir, free>>20)}
	if free < leastForTemplates {
		f.Advice = fmt.Sprintf("give %s %d MiB, or name another directory by --template-dir: without room every VM boots", dir, leastForTemplates>>20)
	}
	return f
}

// leastFiles is what programs with many files want, virtiofsd's own not counted.
const leastFiles = 1 << 16

// openFiles looks at the limit that virtiofsd gets, which has a file open for each
// that the guest knows.
func (h *host) openFiles() (finding, error) {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return finding{}, err
	}
	status, _ := fs.ReadFile(h.files, "proc/self/status") // without it: as if it could not be raised
	return filesWithin(limit.Max, mayRaiseLimits(string(status))), nil
}

// mayRaiseLimits looks for CAP_SYS_RESOURCE in the text of /proc/self/status.
func mayRaiseLimits(status string) bool {
	for line := range strings.Lines(status) {
		if value, ok := strings.CutPrefix(line, "CapEff:"); ok {
			caps, err := strconv.ParseUint(strings.TrimSpace(value), 16, 64)
			return err == nil && caps&(1<<unix.CAP_SYS_RESOURCE) != 0
		}
	}
	return false
}

func filesWithin(limit uint64, raised bool) finding {
	f := finding{Found: fmt.Sprintf("ulimit -Hn is %d", limit)}
	switch {
	case raised:
		f.Found += ", and raised for each container"
	case limit < leastFiles:
		f.Found += ": a container has no more of the host's files open at once"
		f.Advice = fmt.Sprintf("raise the limit of open files to %d where boxlite is called (LimitNOFILE of the engine's service, or limits.conf)", 16*leastFiles)
	}
	return f
}

// userNamespaces matter to ordinary users, whose containers have one each, and to
// containers that config.json gives one.
func (h *host) userNamespaces() (finding, error) {
	reason, do := "", ""
	switch {
	case h.sysctl("kernel/unprivileged_userns_clone") == "0":
		reason, do = "only root may make them (kernel.unprivileged_userns_clone)", "sysctl kernel.unprivileged_userns_clone=1"
	case h.sysctl("user/max_user_namespaces") == "0":
		reason, do = "nobody may make one (user.max_user_namespaces)", "sysctl user.max_user_namespaces=10000"
	case h.sysctl("kernel/apparmor_restrict_unprivileged_userns") == "1":
		reason = "AppArmor leaves an ordinary user no power in one (kernel.apparmor_restrict_unprivileged_userns)"
		do = "give boxlite an AppArmor profile with userns, or sysctl kernel.apparmor_restrict_unprivileged_userns=0"
	case !h.has("proc/self/ns/user"):
		reason, do = "this kernel has none", "use a kernel with CONFIG_USER_NS"
	default:
		return finding{Found: "allowed"}, nil
	}
	if h.uid != 0 {
		return finding{}, fmt.Errorf("%s: %s", reason, do)
	}
	return finding{Found: reason + "; root's containers run"}, nil
}

// selinux matters where it is enforced: the monitor, QEMU and virtiofsd then have the
// label that the engine gives to a container's processes.
func (h *host) selinux() (finding, error) {
	raw, err := fs.ReadFile(h.files, "sys/fs/selinux/enforce")
	switch {
	case err != nil:
		return finding{Found: "off"}, nil
	case strings.TrimSpace(string(raw)) != "1":
		return finding{Found: "permissive"}, nil
	}
	return finding{
		Found:  "enforced, and boxlite has not been tried with a policy",
		Advice: "where a container does not start: docker run --security-opt label=disable, or podman's",
	}, nil
}

func (h *host) sysctl(name string) string {
	raw, _ := fs.ReadFile(h.files, "proc/sys/"+name) // a kernel without it has no such restriction
	return strings.TrimSpace(string(raw))
}

func (h *host) has(path string) bool {
	_, err := fs.Stat(h.files, path)
	return err == nil
}

func (h *host) network() (finding, error) {
	if h.uid != 0 {
		return finding{Found: "QEMU's own (what podman's networks need, podman unshare boxlite check says)"}, nil
	}
	err := hostnet.Probe()
	var path *fs.PathError
	if errors.As(err, &path) { // of /dev/net/tun, which says what to do
		return finding{}, err
	}
	if errors.Is(err, unix.EPERM) {
		return finding{}, fmt.Errorf("%w: this user may not", err)
	}
	if err != nil {
		return finding{}, fmt.Errorf("%w; load the modules tun, act_mirred, cls_u32 and sch_ingress", err)
	}
	return finding{Found: "/dev/net/tun, traffic control"}, nil
}

// bridgeNF says whether packets between containers of one bridge meet the host's
// rules. Docker's --icc=false and Kubernetes' services count on it.
func (h *host) bridgeNF() string {
	if v4, v6 := h.sysctl("net/bridge/bridge-nf-call-iptables"), h.sysctl("net/bridge/bridge-nf-call-ip6tables"); v4 == "1" && v6 == "1" {
		return "on, packets within a bridge meet iptables"
	}
	return "off or in part, packets within a bridge do not meet iptables (Kubernetes needs it: modprobe br_netfilter)"
}

// The QEMU that the command line is written for.
const minQEMUMajor, minQEMUMinor = 7, 2

func checkQEMU(h *host) (finding, error) {
	path, err := parts.FindQEMU(h.parts)
	if err != nil {
		return finding{}, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, path, "--version").CombinedOutput()
	if err != nil {
		return finding{}, fmt.Errorf("%s --version: %w: %s", path, err, bytes.TrimSpace(out))
	}
	version, err := qemuVersion(string(out))
	if err != nil {
		return finding{}, fmt.Errorf("%s: %w", path, err)
	}
	f := finding{Found: fmt.Sprintf("%s, version %s", path, version)}
	if a, _, err := accel.Resolve(h.accel); err == nil && a == accel.TCG {
		f.Advice = emulationFault(version)
		f.Found += because(f.Advice != "", ": a known fault")
	}
	return f, nil
}

// emulationFault says what to do about a QEMU whose emulation is known to be at
// fault, if it is. What 8.1.1 has mended is no matter: our kernels avoid it.
func emulationFault(version string) string {
	if strings.HasPrefix(version, "10.0.") {
		return "programs in emulated guests have crashed with QEMU 10.0: use a machine with KVM, or QEMU 7.2 by --qemu"
	}
	return ""
}

var qemuVersionLine = regexp.MustCompile(`version (\d+)\.(\d+)(?:\.\d+)*`)

// qemuVersion reads what qemu --version says, and refuses what is too old.
func qemuVersion(out string) (string, error) {
	m := qemuVersionLine.FindStringSubmatch(out)
	if m == nil {
		return "", errors.New("it does not say its version")
	}
	major, _ := strconv.Atoi(m[1]) // digits; a number too large is new enough
	minor, _ := strconv.Atoi(m[2])
	version := strings.TrimPrefix(m[0], "version ")
	if major < minQEMUMajor || major == minQEMUMajor && minor < minQEMUMinor {
		return "", fmt.Errorf("version %s is too old: install %d.%d or later", version, minQEMUMajor, minQEMUMinor)
	}
	return version, nil
}

func checkKernels(h *host) (finding, error) {
	images, initramfs, err := parts.FindImages(h.parts)
	if err != nil {
		return finding{}, err
	}
	var names []string
	for k := range images {
		names = append(names, string(k))
	}
	slices.Sort(names)
	return finding{Found: fmt.Sprintf("%s and the initramfs in %s", strings.Join(names, ", "), filepath.Dir(initramfs))}, nil
}

func dialectName(d parts.Dialect) string {
	if d == parts.DialectRust {
		return "Rust"
	}
	return "C"
}
