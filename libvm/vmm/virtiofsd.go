package vmm

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/boxlite-oci/boxlite/libvm/parts"
)

// shareSocket is a vhost-user connection to come: a listening socket for
// virtiofsd and a client already connected to it for QEMU, so that neither has
// to wait for the other. The name is one the kernel makes up (autobind,
// unix(7)).
func shareSocket() (listener, client *os.File, err error) {
	lfd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	listener = os.NewFile(uintptr(lfd), "vhost-user listener")
	cfd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, errors.Join(err, listener.Close())
	}
	client = os.NewFile(uintptr(cfd), "vhost-user client")
	connect := func() error {
		if err := unix.Bind(lfd, &unix.SockaddrUnix{}); err != nil {
			return err
		}
		if err := unix.Listen(lfd, 1); err != nil {
			return err
		}
		addr, err := unix.Getsockname(lfd)
		if err != nil {
			return err
		}
		return unix.Connect(cfd, addr)
	}
	if err := connect(); err != nil {
		return nil, nil, errors.Join(err, listener.Close(), client.Close())
	}
	return listener, client, nil
}

// startVirtiofsd starts virtiofsd for a share.
func startVirtiofsd(program parts.Virtiofsd, files Files, log *slog.Logger, listener *os.File) (*process, error) {
	return startProcess("virtiofsd", program.Path, virtiofsdArgs(program.Dialect, 3, files.Share, files.Nodes), func(attr *syscall.SysProcAttr) error {
		// Its root is the share as soon as it has it, and until then what the
		// monitor's is now.
		attr.Cloneflags = unix.CLONE_NEWNS
		if err := keepCapabilities(); err != nil { // files that nobody but the guest's root may create are refused
			log.Debug("virtiofsd loses its capabilities with its user", "error", err)
		}
		return noNewPrivileges()
	}, log, listener)
}

// noSetuidFixup is SECBIT_NO_SETUID_FIXUP (linux/securebits.h).
const noSetuidFixup = 1 << 2

// keepCapabilities has the capabilities of the calling thread, and of what it executes,
// stay when its user changes (capabilities(7), securebits).
//
// virtiofsd becomes whoever creates a file in the guest, so that the file is theirs. It
// knows neither their supplementary groups nor their capabilities. Without its own it
// would refuse what these allow, though the guest's kernel has decided already
// (default_permissions). It gives nothing away to a guest that lies: such a guest says
// that its root creates the file.
func keepCapabilities() error {
	bits, err := unix.PrctlRetInt(unix.PR_GET_SECUREBITS, 0, 0, 0, 0)
	if err != nil {
		return err
	}
	return unix.Prctl(unix.PR_SET_SECUREBITS, uintptr(bits|noSetuidFixup), 0, 0, 0)
}

// virtiofsdArgs is the command line of either virtiofsd. Both give up all
// capabilities but those over files, and with nodes CAP_MKNOD.
//
// With cache=auto an ordinary kernel forgets a file's content whenever somebody
// opens it, so that every start of a program reads it anew, and under TCG
// translates it anew. cache=always keeps the content, and with a timeout of a
// second is otherwise like auto: names and attributes older than that are asked
// for again, and a file whose size or time of modification (mtime) is another
// one is read again. What leaves both as they were does not show. The Rust one
// has no such timeout; with it, it is the guest's kernel that keeps the content
// (kernels/patches/fuse-open-keeps-pages.patch), by the same two signs.
func virtiofsdArgs(dialect parts.Dialect, fd int, dir string, nodes bool) []string {
	capabilities := "-mknod"
	if nodes {
		capabilities = "+mknod"
	}
	if dialect == parts.DialectRust {
		return []string{
			fmt.Sprintf("--fd=%d", fd), "--shared-dir", dir, "--cache=auto", "--xattr", "--announce-submounts",
			"--modcaps=" + capabilities, "--xattrmap=" + attributeMap, "--sandbox=namespace", "--log-level=error",
		}
	}
	return []string{
		fmt.Sprintf("--fd=%d", fd), "-o", "source=" + dir, "-o", "cache=always", "-o", "timeout=1", "-o", "xattr", "-o", "announce_submounts",
		"-o", "modcaps=" + capabilities, "-o", "xattrmap=" + attributeMap, "-o", "sandbox=namespace", "-o", "log_level=err",
	}
}

// attributeMap gives the guest's attributes that are its kernel's or its root's
// business other names on the host, where they would be the host's, and would need
// CAP_SYS_ADMIN: trusted.* and all of security.* but file capabilities, which are
// the same thing on both. The host's own it does not see. (The rules are of
// virtiofsd's documentation, "Extended attribute mapping"; the first one that
// matches counts.)
const attributeMap = ":ok:all:security.capability:security.capability:" +
	":prefix:all:security.:user.virtiofs.:" +
	":bad:server::security.:" +
	":map:trusted.:user.virtiofs.:"
