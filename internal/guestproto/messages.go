package guestproto

import (
	"bytes"
	"encoding/json"
	"math"
	"net/netip"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/boxlite-oci/boxlite/internal/trace"
)

// Version is raised with every incompatible change. Host and guest come from
// one build, so any difference is an error that Hello reports.
const Version = 10

const (
	// ControlPort is the name of the virtio-serial port
	// (/sys/class/virtio-ports/*/name in the guest).
	ControlPort = "boxlite.control"
	// ShareTag is the virtio-fs tag of the VM's one share.
	ShareTag = "boxlite"
	// DeviceFilterFile is where the initramfs holds the device filter (see
	// CreateRequest) of nearly every container.
	DeviceFilterFile = "/device-filter"
	// ModulesDir is where the initramfs of a distribution's kernel holds modules,
	// to load in the order of their names.
	ModulesDir = "/modules"
	// ShareDir is where guestinit mounts the share. Paths of the guest spec
	// (root.path and the sources of bind mounts) lie below it.
	ShareDir = "/run/boxlite/share"
	// SocketDir is where guestinit makes the sockets of CreateRequest.Sockets, by their
	// place there ("0", "1"). Sources of bind mounts lie below it, too.
	SocketDir = "/run/boxlite/sockets"
	// JoinedShm is the source of a bind mount that shows what the container whose ipc
	// namespace is joined has at /dev/shm (CreateRequest.Joins).
	JoinedShm = "/run/boxlite/joined-shm"
)

// First is the name of the VM's first container, whose end is the VM's. Others are
// members of its pod, and are called by the host's ids of theirs.
const First = ""

// MemberName is where in the share a member's files are, and VolumeName where a volume is
// that members have in common.
func MemberName(member string) string { return "members/" + member }
func VolumeName(volume string) string { return "volumes/" + volume }

// LoopDevices is how many loop devices the guest has nodes of.
const LoopDevices = 8

// Rehearsal is the byte that a host sends in place of a session; a session's first
// byte is another. A frame follows, a RehearsalRequest, and the guest answers with
// one Reply. Then a session may begin, or another rehearsal.
const Rehearsal = 'R'

// ClockRate is the byte that a host sends in place of a session to ask how fast the
// guest's clock is. The guest answers with one Reply, whose body is a ClockRateReply.
const ClockRate = 'C'

// ClockRateReply is what the guest takes the host's time stamp counter to do.
type ClockRateReply struct {
	// TSCKHz is the counter's rate by the guest's clock, in kHz.
	TSCKHz float64 `json:"tscKHz"`
}

// Init is the process id of the container init; exec processes have the ids
// that their ExecRequest gave them.
const Init = ""

// Op names a request. On the wire a space and the container's name follow, unless the
// request is about the first container or the VM (In).
type Op string

// In returns the operation on a container.
func (o Op) In(container string) Op {
	if container == First {
		return o
	}
	return o + " " + Op(container)
}

// Every request the host can make. The comment names the body of the request
// and of the reply; a dash is none.
//
// OpRemove takes away what is left of a member, be it alive, and lets go of its files,
// which the host has taken out of the share by then. That the member is not there is no
// error.
const (
	OpHello   Op = "hello"   // HelloRequest, HelloReply
	OpCreate  Op = "create"  // CreateRequest, CreateReply
	OpStart   Op = "start"   // StartRequest, -
	OpExec    Op = "exec"    // ExecRequest, ExecReply
	OpStdio   Op = "stdio"   // StdioRequest, -; raw bytes follow the reply
	OpWait    Op = "wait"    // WaitRequest, WaitReply
	OpSignal  Op = "signal"  // SignalRequest, -
	OpResize  Op = "resize"  // ResizeRequest, -
	OpNetwork Op = "network" // Network, -
	OpClock   Op = "clock"   // ClockRequest, ClockReply
	OpUpdate  Op = "update"  // UpdateRequest, -
	OpStats   Op = "stats"   // -, StatsReply
	OpOOM     Op = "oom"     // OOMRequest, OOMReply
	OpForget  Op = "forget"  // ForgetRequest, ForgetReply
	OpLook    Op = "look"    // LookRequest, -
	OpFlush   Op = "flush"   // -, -
	OpDNS     Op = "dns"     // -, -; DNS messages follow the reply, see DNSAddress
	OpFreeze  Op = "freeze"  // FreezeRequest, -
	OpRemove  Op = "remove"  // RemoveRequest, -
	// SocketRequest, AcceptReply; the client's connection follows, see package sockrelay
	OpAccept Op = "accept"
	// SocketRequest, -; the clients' datagrams follow, see package sockrelay
	OpDatagrams Op = "datagrams"
	OpListeners Op = "listeners" // ListenersRequest, ListenersReply
	// DialRequest, -; the connection follows, or packets, see package sockrelay
	OpDial       Op = "dial"
	OpWatches    Op = "watches"     // -, WatchesReply
	OpFileEvents Op = "file-events" // FileEventsRequest, FileEventsReply
)

// Request opens every stream. On the wire it is two frames, the name of the
// operation and its body: the guest, which may be emulated, reads the body once.
type Request struct {
	Op        Op
	Container string          // First for the first one, and for what is the VM's
	Body      json.RawMessage // empty for none
}

// Reply answers a Request. Exactly one of Error and Body counts; both may be
// absent where the operation has nothing to say.
type Reply struct {
	Error *Error          `json:"error,omitempty"`
	Body  json.RawMessage `json:"body,omitempty"`
}

// RehearsalRequest asks a guest without a container to go through the life of one.
// What an emulator has to translate for that is then translated when the container
// comes. The share and the NICs must be in the VM. When the guest replies it no
// longer needs them, and nothing of the example is left.
type RehearsalRequest struct {
	Hello   HelloRequest  `json:"hello"`
	Network *Network      `json:"network,omitempty"` // nil for none
	Create  CreateRequest `json:"create"`
}

// HelloRequest is the first request of a VM's life.
type HelloRequest struct {
	Version int `json:"version"`
	// UnixNano is the host's wall clock, which the guest takes over.
	UnixNano int64 `json:"unixNano"`
	// Entropy goes into the guest's CRNG and is credited in full.
	Entropy []byte `json:"entropy"`
	// Debug asks guestinit to log its steps to the console.
	Debug bool `json:"debug,omitempty"`
}

// ClockRequest moves the guest's wall clock forward to UnixNano, if it is behind.
// The clock stands still while the VM is paused, and hello may have taken its time.
// With Back the clock is set if it is ahead, too. Only the host knows whether it is
// the request that is late.
type ClockRequest struct {
	UnixNano int64 `json:"unixNano"`
	Back     bool  `json:"back,omitempty"`
}

// ClockReply is the guest's wall clock when the request came, before it was set.
type ClockReply struct {
	UnixNano int64 `json:"unixNano"`
}

// ForgetRequest asks the guest's kernel to let go of files that it only keeps in
// case they are needed again, if it knows more than Above files.
type ForgetRequest struct {
	Above int `json:"above"`
}

// LookRequest has the guest look names up whose meaning has changed on the host, and so
// let go of what they meant before. The guest has to have last looked longer ago than it
// keeps a name (a second).
type LookRequest struct {
	Paths []string `json:"paths"` // below ShareDir
}

// ForgetReply says how many files of the share the guest's kernel knew and had open
// before, and has now. With Debian's kernel those of all file systems count.
type ForgetReply struct {
	Before int `json:"before"`
	After  int `json:"after"`
}

// HelloReply says which guest answered.
type HelloReply struct {
	Version       int    `json:"version"`
	KernelRelease string `json:"kernelRelease"`
}

// CreateRequest asks for the container to be built up to the point before exec. The
// first one of a VM comes first. A member that cannot be built leaves nothing.
type CreateRequest struct {
	// ID is the container's id, which names its session keyring.
	ID string `json:"id"`
	// Spec is the guest spec: config.json with host paths replaced by paths
	// below ShareDir and everything that only the host does taken out.
	Spec *specs.Spec `json:"spec"`
	// DeviceFilter is an eBPF program of type BPF_PROG_TYPE_CGROUP_DEVICE, in
	// the kernel's encoding, for the container's cgroup; empty for none.
	DeviceFilter []byte `json:"deviceFilter,omitempty"`
	// Seccomp is the filter of the container's processes, which the spec does not
	// hold; nil for none.
	Seccomp *SeccompFilter `json:"seccomp,omitempty"`
	// KernelParameters are set before those of the spec, in the order of their
	// names, which are paths below /proc/sys. A kernel may lack some.
	KernelParameters map[string]string `json:"kernelParameters,omitempty"`
	// Submounts are mounts of the share that shall be mounts of their own in the
	// container, with other attributes than the bind above them: their paths, parents
	// first, below the source of the bind (or the rootfs). One that is not there does
	// no harm.
	Submounts map[string][]string `json:"submounts,omitempty"`
	// Sockets are those of the host that bind mounts show to the container.
	Sockets []Socket `json:"sockets,omitempty"`
	// Joins are the namespaces, of the types ipc, pid and uts, that a member has in
	// common with another container, which is named. All others are its own.
	Joins map[specs.LinuxNamespaceType]string `json:"joins,omitempty"`
	// NullStdin gives the container init /dev/null for stdin, and no such stream
	// to ask for. It says nothing of a process with a terminal.
	NullStdin bool `json:"nullStdin,omitempty"`
	// PlainNewlines has the terminal leave a newline as it is: another one, whose
	// reader the host is, makes of it what it takes.
	PlainNewlines bool `json:"plainNewlines,omitempty"`
	// OOMScoreFloor has only a process with CAP_SYS_RESOURCE go below the oom_score_adj
	// that it began with. Without it all may go back to 0.
	OOMScoreFloor bool `json:"oomScoreFloor,omitempty"`
	// Trace asks for the steps in the reply; without it there is none.
	Trace bool `json:"trace,omitempty"`
}

// Socket is a socket of the host's as the container sees it. The guest's kernel decides
// by mode and owner who may connect.
type Socket struct {
	// Datagram says that it takes datagrams, and not connections.
	Datagram bool   `json:"datagram,omitempty"`
	Mode     uint32 `json:"mode"` // permissions alone
	UID      uint32 `json:"uid"`
	GID      uint32 `json:"gid"`
}

// SocketRequest names one of CreateRequest.Sockets. As OpAccept it is answered when a
// client has connected, and may be made several times at once.
type SocketRequest struct {
	Socket int `json:"socket"`
}

// AcceptReply says who has connected: the ids that the guest's kernel has for the
// client (SO_PEERCRED).
type AcceptReply struct {
	UID uint32 `json:"uid"`
	GID uint32 `json:"gid"`
}

// MostListeners is how many of the guest's listening sockets are told of.
const MostListeners = 256

// Listener is a socket in the guest that takes connections, or packets from everybody.
type Listener struct {
	Network string         `json:"network"` // "tcp" or "udp"
	Address netip.AddrPort `json:"address"`
}

// ListenersRequest is answered when the guest's listening sockets are other than Seen.
type ListenersRequest struct {
	Seen []Listener `json:"seen,omitempty"`
}

// ListenersReply lists the sockets, each once, in an order of its own.
type ListenersReply struct {
	Listeners []Listener `json:"listeners,omitempty"`
}

// MostWatches is how many of the guest's files are watched on the host.
const MostWatches = 8192

// WatchedEvents are those of inotify(7) that tell of changes. Others are of the guest's
// own doing.
const WatchedEvents = unix.IN_CREATE | unix.IN_DELETE | unix.IN_MODIFY | unix.IN_ATTRIB | unix.IN_CLOSE_WRITE |
	unix.IN_MOVED_FROM | unix.IN_MOVED_TO | unix.IN_MOVE_SELF | unix.IN_DELETE_SELF

// Watch is a file of the share that processes in the guest watch (inotify(7)).
type Watch struct {
	Number int    `json:"number"` // of the guest's choice, and never used for another
	Path   []byte `json:"path"`   // below ShareDir
	Mask   uint32 `json:"mask"`   // of WatchedEvents
}

// WatchesReply says what is watched that was not when it was said last. The request is
// answered when there is something to say.
type WatchesReply struct {
	Added []Watch `json:"added,omitempty"`
	Gone  []int   `json:"gone,omitempty"` // numbers
	// TooMany says that more than MostWatches are watched.
	TooMany bool `json:"tooMany,omitempty"`
}

// FileEvent is an event of inotify(7) on the host.
type FileEvent struct {
	Watch  int    `json:"watch"` // its number
	Mask   uint32 `json:"mask"`
	Cookie uint32 `json:"cookie,omitempty"`
	Name   []byte `json:"name,omitempty"` // in the directory that is watched; empty for the watched file itself
}

// Equal says that both say the same.
func (e FileEvent) Equal(other FileEvent) bool {
	return e.Watch == other.Watch && e.Mask == other.Mask && e.Cookie == other.Cookie && bytes.Equal(e.Name, other.Name)
}

// FileEventsRequest has the guest tell its watchers what has changed. The guest leaves
// out what it has changed itself.
type FileEventsRequest struct {
	Events []FileEvent `json:"events"`
}

// FileEventsReply names watches that nobody needs any more.
type FileEventsReply struct {
	Gone []int `json:"gone,omitempty"`
}

// DialRequest has guestinit connect to a socket in the guest. It is answered when it is
// connected.
type DialRequest struct {
	Listener
}

// SeccompFilter is a filter for seccomp(2).
type SeccompFilter struct {
	// Program is an array of struct sock_filter, in the machine's order.
	Program []byte `json:"program"`
	// Flags are SECCOMP_FILTER_FLAG_*.
	Flags uint `json:"flags,omitempty"`
}

// CreateReply says how long each step took. It is empty without
// CreateRequest.Trace.
type CreateReply struct {
	// Steps count from when the guest has read the request.
	Steps []trace.Span `json:"steps"`
}

// UpdateRequest changes limits of the container's cgroup. What it leaves out
// stays as it is.
type UpdateRequest struct {
	Resources *specs.LinuxResources `json:"resources"`
}

// StartRequest asks for the exec of the container init.
type StartRequest struct {
	// Network is what the guest's interfaces shall look like; its NICs are in
	// the VM before the request is made. Nil means loopback only.
	Network *Network `json:"network,omitempty"`
	// State is what the startContainer hooks of the spec read. A hook that
	// fails gives CodeHook, and the container is not started.
	State *specs.State `json:"state,omitempty"`
}

// ExecRequest starts a further process in the container.
type ExecRequest struct {
	// ID names the process in later requests. It is not empty and not in use.
	ID string `json:"id"`
	// Process is the OCI process object, with its own capabilities.
	Process *specs.Process `json:"process"`
	// Cgroup is a path below the container's own cgroup; empty is that itself.
	Cgroup string `json:"cgroup,omitempty"`
	// NullStdin and PlainNewlines are as in CreateRequest.
	NullStdin     bool `json:"nullStdin,omitempty"`
	PlainNewlines bool `json:"plainNewlines,omitempty"`
}

// ExecReply carries the new process's pid in the container's pid namespace.
type ExecReply struct {
	Pid int `json:"pid"`
}

// Stream names one of a process's standard streams. A process with a terminal
// has stdin and stdout only, both of them the pty's master side.
type Stream string

// The standard streams.
const (
	Stdin  Stream = "stdin"
	Stdout Stream = "stdout"
	Stderr Stream = "stderr"
)

// StdioRequest turns its stream into one of a process's standard streams. Each
// can be asked for once. Stdin runs towards the guest: a close by the host is
// the process's EOF. Stdout and stderr run towards the host: the guest closes
// them at EOF, which children that an exec process left behind may put off for
// long, and with the container. The host closes one that nobody reads any more.
type StdioRequest struct {
	Process string `json:"process"`
	Stream  Stream `json:"stream"`
}

// WaitRequest is answered when the process has ended.
type WaitRequest struct {
	Process string `json:"process"`
}

// ExitStatus is how a process ended. Signal is the signal that killed it, or zero.
// Code is its exit code, and counts only if Signal is zero.
type ExitStatus struct {
	Code   int `json:"code"`
	Signal int `json:"signal,omitempty"`
}

// Shell returns the status in the form of a shell's: the code, or 128 plus the
// signal's number.
func (s ExitStatus) Shell() int {
	if s.Signal != 0 {
		return 128 + s.Signal
	}
	return s.Code
}

// WaitReply is how a process ended.
type WaitReply struct {
	ExitStatus
	// Stdout and Stderr are how many bytes of an exec process's streams are its own;
	// what follows comes from children that it left behind.
	Stdout int64 `json:"stdout,omitempty"`
	Stderr int64 `json:"stderr,omitempty"`
	// OOMKilled says that the guest's kernel killed a process of the
	// container for lack of memory. Only the container init's reply has it.
	OOMKilled bool `json:"oomKilled,omitempty"`
}

// SignalRequest sends a signal to one process or, with All, to every process
// of the container. Signal 0 probes. A process that has ended gives
// CodeNoProcess.
type SignalRequest struct {
	Process string `json:"process"`
	Signal  int    `json:"signal"`
	All     bool   `json:"all,omitempty"`
}

// FreezeRequest has the container's processes stand still, or go on. Signals wait,
// but for SIGKILL.
type FreezeRequest struct {
	Frozen bool `json:"frozen"`
}

// RemoveRequest is about a member and about volumes that nobody else has.
type RemoveRequest struct {
	Volumes []string `json:"volumes,omitempty"`
}

// ResizeRequest sets the window size of a process's terminal, in characters.
type ResizeRequest struct {
	Process string `json:"process"`
	Width   uint16 `json:"width"`
	Height  uint16 `json:"height"`
}

// NoLimit is the value of a limit that does not exist.
const NoLimit = math.MaxUint64

// StatsReply is what the container has used, as its cgroup in the guest counts it.
type StatsReply struct {
	CPU    CPUStats    `json:"cpu"`
	Memory MemoryStats `json:"memory"`
	Pids   PidsStats   `json:"pids"`
}

// CPUStats is cpu.stat of cgroup v2.
type CPUStats struct {
	UsageMicros      uint64 `json:"usageMicros"`
	UserMicros       uint64 `json:"userMicros"`
	SystemMicros     uint64 `json:"systemMicros"`
	Periods          uint64 `json:"periods,omitempty"`
	ThrottledPeriods uint64 `json:"throttledPeriods,omitempty"`
	ThrottledMicros  uint64 `json:"throttledMicros,omitempty"`
}

// MemoryStats is the container's use of memory, in bytes.
type MemoryStats struct {
	Usage uint64 `json:"usage"`
	Peak  uint64 `json:"peak"`
	Limit uint64 `json:"limit"`
	// AtLimit counts how often the usage was about to go over the limit.
	AtLimit   uint64 `json:"atLimit,omitempty"`
	Swap      uint64 `json:"swap,omitempty"`
	SwapLimit uint64 `json:"swapLimit"`
	Kernel    uint64 `json:"kernel"`
	// Detail is memory.stat.
	Detail map[string]uint64 `json:"detail,omitempty"`
}

// PidsStats is the number of processes and threads, and the limit.
type PidsStats struct {
	Current uint64 `json:"current"`
	Limit   uint64 `json:"limit"`
}

// OOMRequest is answered when the guest's kernel has killed more than Seen
// processes of the container for lack of memory.
type OOMRequest struct {
	Seen uint64 `json:"seen"`
}

// OOMReply is the number of kills so far.
type OOMReply struct {
	Kills uint64 `json:"kills"`
}

// Network is the wanted state of the guest's network: what the container's
// network namespace on the host looked like when it was read. The guest changes
// what is different from the Network of the last request, and nothing else. An
// interface that is not in it any more goes.
type Network struct {
	Interfaces []Interface `json:"interfaces,omitempty"`
	Routes     []Route     `json:"routes,omitempty"`
	Neighbours []Neighbour `json:"neighbours,omitempty"`
	// DNSRelay asks guestinit to answer on DNSAddress; the host has opened or
	// will open the OpDNS stream that carries the queries.
	DNSRelay bool `json:"dnsRelay,omitempty"`
}

// DNSAddress is the address of Docker's embedded resolver inside a container's
// network namespace, at port 53. In the guest this address is the guest's own
// loopback. With DNSRelay guestinit serves UDP and TCP there, and sends every query
// over the OpDNS stream. Queries are framed as DNS over TCP (RFC 1035, section
// 4.2.2). guestinit gives them message ids of its own, and matches the responses by
// these ids.
const DNSAddress = "127.0.0.11"

// Interface is one NIC, found in the guest by its hardware address.
type Interface struct {
	Name string `json:"name"`
	// MAC is in the colon form of net.HardwareAddr.
	MAC string `json:"mac"`
	// MTU is in bytes; zero leaves the guest's default.
	MTU int `json:"mtu,omitempty"`
	// Addresses are in CIDR form.
	Addresses []string `json:"addresses,omitempty"`
}

// Route is one entry of the main table, or with Loopback of the local one, given in the
// order in which it can be added. Dst is in CIDR form, empty for a default route.
type Route struct {
	Interface string `json:"interface"`
	Dst       string `json:"dst,omitempty"`
	Gateway   string `json:"gateway,omitempty"`
	Source    string `json:"source,omitempty"`
	// Family is 4 or 6.
	Family int `json:"family"`
	// Scope, Protocol, Metric and Flags are those of rtnetlink(7).
	Scope    int `json:"scope,omitempty"`
	Protocol int `json:"protocol,omitempty"`
	Metric   int `json:"metric,omitempty"`
	Flags    int `json:"flags,omitempty"`
	// Loopback says that Dst is an address of 127/8 all the same, where clients of
	// 127.0.0.1 are: the interface shall take packets from there. The host sees to it
	// that no others of 127/8 come.
	Loopback bool `json:"loopback,omitempty"`
}

// Neighbour is a permanent ARP or NDP entry.
type Neighbour struct {
	Interface string `json:"interface"`
	IP        string `json:"ip"`
	MAC       string `json:"mac"`
}
