package main

import (
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/boxlite-oci/boxlite/internal/guestproto"
)

// hello checks that both sides come from one build, and takes over the host's
// clock. It gives the guest random numbers of its own: until then a VM that was
// restored from a template has those of the template's other copies.
func (s *server) hello(req *guestproto.HelloRequest) (any, error) {
	if req.Version != guestproto.Version {
		return nil, guestproto.Errorf(guestproto.CodeBadRequest, "protocol version %d, this guest speaks %d", req.Version, guestproto.Version)
	}
	debugLog = req.Debug
	if err := setClock(req.UnixNano); err != nil {
		return nil, err
	}
	if err := addEntropy(req.Entropy); err != nil {
		return nil, err
	}
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return nil, fmt.Errorf("uname: %w", err)
	}
	return &guestproto.HelloReply{Version: guestproto.Version, KernelRelease: unix.ByteSliceToString(uts.Release[:])}, nil
}

// maxEntropy is more than the kernel's pool holds.
const maxEntropy = 512

// addEntropy mixes entropy into the kernel's generator, credited in full, and
// reseeds it at once.
func addEntropy(entropy []byte) error {
	if len(entropy) == 0 {
		return nil
	}
	if len(entropy) > maxEntropy {
		entropy = entropy[:maxEntropy]
	}
	device, err := unix.Open("/dev/urandom", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: "/dev/urandom", Err: err}
	}
	defer unix.Close(device)
	// struct rand_pool_info of random(4).
	pool := struct {
		bits, size int32
		buf        [maxEntropy]byte
	}{bits: int32(len(entropy) * 8), size: int32(len(entropy))}
	copy(pool.buf[:], entropy)
	if err := ioctlPointer(device, unix.RNDADDENTROPY, unsafe.Pointer(&pool)); err != nil {
		return fmt.Errorf("add entropy: %w", err)
	}
	if err := ioctlPointer(device, unix.RNDRESEEDCRNG, nil); err != nil {
		return fmt.Errorf("reseed random number generator: %w", err)
	}
	return nil
}
