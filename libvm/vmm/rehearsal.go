package vmm

import (
	"bytes"
	"context"
	"crypto/rand"
	"debug/elf"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/boxlite-oci/boxlite/internal/guestproto"
	"github.com/boxlite-oci/boxlite/libvm/plan"
)

// stageOf is where the share of a rehearsal is, below dir, for the keeper with that
// pid.
func stageOf(dir string, pid int) string { return filepath.Join(dir, fmt.Sprintf("rehearsal-%d", pid)) }

// makeStage makes the share of a rehearsal. The caller removes it.
func makeStage(stage string) (err error) {
	rootfs := filepath.Join(stage, plan.RootfsName)
	for _, name := range []string{"proc", "sys", "dev"} {
		err = errors.Join(err, os.MkdirAll(filepath.Join(rootfs, name), 0o755))
	}
	err = errors.Join(err, os.WriteFile(filepath.Join(rootfs, rehearsalProgram), exitProgram(), 0o755))
	return err
}

// rehearsalProgram is what the container of a rehearsal executes.
const rehearsalProgram = "/program"

// exitProgram is a static executable for x86-64 that says a word and ends.
func exitProgram() []byte {
	code := []byte{
		0xb8, 1, 0, 0, 0, // mov eax, SYS_write
		0xbf, 1, 0, 0, 0, // mov edi, 1
		0x48, 0x8d, 0x35, 16, 0, 0, 0, // lea rsi, [rip+16]: the end of the code
		0xba, 2, 0, 0, 0, // mov edx, 2
		0x0f, 0x05, // syscall
		0xb8, 60, 0, 0, 0, // mov eax, SYS_exit
		0x31, 0xff, // xor edi, edi
		0x0f, 0x05, // syscall
		'!', '\n',
	}
	const base = 0x400000
	header := elf.Header64{Type: uint16(elf.ET_EXEC), Machine: uint16(elf.EM_X86_64), Version: uint32(elf.EV_CURRENT), Phnum: 1}
	copy(header.Ident[:], elf.ELFMAG)
	header.Ident[elf.EI_CLASS], header.Ident[elf.EI_DATA], header.Ident[elf.EI_VERSION] = byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)
	segment := elf.Prog64{Type: uint32(elf.PT_LOAD), Flags: uint32(elf.PF_R | elf.PF_X), Vaddr: base, Paddr: base, Align: 0x1000}
	header.Ehsize, header.Phentsize = uint16(binary.Size(header)), uint16(binary.Size(segment))
	header.Phoff = uint64(header.Ehsize)
	size := int(header.Ehsize) + int(header.Phentsize)
	header.Entry = base + uint64(size)
	segment.Filesz = uint64(size + len(code))
	segment.Memsz = segment.Filesz
	var program bytes.Buffer
	for _, part := range []any{header, segment, code} {
		_ = binary.Write(&program, binary.LittleEndian, part) // to memory
	}
	return program.Bytes()
}

// rehearse has a VM that stands still go through the life of a container, whose
// share is stage, and leaves it as it was, at a standstill. What QEMU has to
// translate for that it has translated when the container comes.
func (v *VM) rehearse(stage string, example *specs.Spec) error {
	req, err := rehearsal(stage, example)
	if err != nil {
		return err
	}
	if err := v.proceed(); err != nil {
		return err
	}
	if err := v.PlugShare(); err != nil {
		return err
	}
	if err := v.PlugUserNIC(); err != nil {
		return err
	}
	if err := v.askToRehearse(req); err != nil {
		return fmt.Errorf("guest: rehearsal: %w", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), commandTimeout)
	defer cancel()
	if err := v.unplugUserNIC(ctx); err != nil {
		return err
	}
	if err := v.unplugShare(ctx); err != nil {
		return err
	}
	return v.qmp.Execute(ctx, "stop", nil, nil)
}

// rehearsal is the request for it.
func rehearsal(stage string, example *specs.Spec) (req guestproto.RehearsalRequest, err error) {
	spec, err := plan.CopySpec(example)
	if err != nil {
		return req, err
	}
	spec.Process.Args, spec.Process.Terminal = []string{rehearsalProgram}, false
	// Docker's containers have both; the parameter is the VM's, so it keeps its value.
	spec.Linux.Seccomp = &specs.LinuxSeccomp{
		DefaultAction: specs.ActAllow, Syscalls: []specs.LinuxSyscall{{Names: []string{"reboot"}, Action: specs.ActErrno}},
	}
	spec.Linux.Sysctl = map[string]string{"net.ipv4.ip_unprivileged_port_start": "1024"}
	facts, err := plan.LookAtHost(spec, stage)
	if err != nil {
		return req, err
	}
	plan, err := plan.Rewrite(spec, filepath.Join(stage, plan.RootfsName), facts, plan.Overrides{})
	if err != nil {
		return req, err
	}
	entropy := make([]byte, 64)
	if _, err := rand.Read(entropy); err != nil {
		return req, err
	}
	// A NIC of a namespace's has the way to clients there as well.
	const client = "127.254.254.1"
	network := UserNetwork
	network.Routes = append([]guestproto.Route{{
		Interface: "eth0", Dst: client + "/32", Source: "127.0.0.1", Family: 4, Scope: unix.RT_SCOPE_LINK, Loopback: true,
	}}, network.Routes...)
	network.Neighbours = []guestproto.Neighbour{{Interface: "eth0", IP: client, MAC: userNIC.MAC}}
	return guestproto.RehearsalRequest{
		Network: &network,
		Hello:   guestproto.HelloRequest{Version: guestproto.Version, UnixNano: time.Now().UnixNano(), Entropy: entropy},
		Create:  guestproto.CreateRequest{ID: "rehearsal", Spec: plan.Guest, DeviceFilter: plan.DeviceFilter, Seccomp: plan.Seccomp, NullStdin: true},
	}, nil
}

func (v *VM) askToRehearse(req guestproto.RehearsalRequest) error {
	if err := v.Control.SetDeadline(time.Now().Add(commandTimeout)); err != nil {
		return err
	}
	if _, err := v.Control.Write([]byte{guestproto.Rehearsal}); err != nil {
		return err
	}
	if err := guestproto.WriteFrame(v.Control, req); err != nil {
		return err
	}
	var rep guestproto.Reply
	if err := guestproto.ReadFrame(v.Control, guestproto.MaxReply, &rep); err != nil {
		return err
	}
	if rep.Error != nil {
		return rep.Error
	}
	return v.Control.SetDeadline(time.Time{})
}

// unplugShare takes the share away, ends its virtiofsd and gives QEMU a new socket
// to the one that will be.
func (v *VM) unplugShare(ctx context.Context) error {
	if err := v.unplug(ctx, "share"); err != nil {
		return err
	}
	if err := v.qmp.Execute(ctx, "chardev-remove", map[string]any{"id": "share"}, nil); err != nil {
		return err
	}
	// With its connection virtiofsd ends by itself, both its processes.
	select {
	case <-v.virtiofsd.done:
		v.virtiofsd = nil
	case <-ctx.Done():
		return fmt.Errorf("virtiofsd does not end: %w", ctx.Err())
	}
	listener, client, err := shareSocket()
	if err != nil {
		return fmt.Errorf("socket for virtiofsd: %w", err)
	}
	v.spare.virtiofsd = listener
	err = v.qmp.ExecuteWithFile(ctx, "getfd", map[string]any{"fdname": "share"}, nil, client)
	if err := errors.Join(err, client.Close()); err != nil {
		return err
	}
	socket := map[string]any{"addr": map[string]any{"type": "fd", "data": map[string]any{"str": "share"}}, "server": false}
	return v.qmp.Execute(ctx, "chardev-add", map[string]any{"id": "share", "backend": map[string]any{"type": "socket", "data": socket}}, nil)
}

func (v *VM) unplugUserNIC(ctx context.Context) error {
	if err := v.unplug(ctx, userNIC.id()); err != nil {
		return err
	}
	return v.qmp.Execute(ctx, "netdev_del", map[string]any{"id": userNIC.Name}, nil)
}

// unplug returns when the guest has let the device go.
func (v *VM) unplug(ctx context.Context, device string) error {
	if err := v.qmp.Execute(ctx, "device_del", map[string]any{"id": device}, nil); err != nil {
		return err
	}
	return v.awaitEvent(ctx, "DEVICE_DELETED", func(data json.RawMessage) bool {
		var gone struct {
			Device string `json:"device"`
		}
		return json.Unmarshal(data, &gone) == nil && gone.Device == device
	})
}
