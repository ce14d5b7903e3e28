package hostnet

import (
	"errors"
	"io"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
)

// watch opens a watch of ns.
func watch(t *testing.T, ns *os.File) *Watch {
	t.Helper()
	var w *Watch
	if err := in(ns, func() (err error) {
		w, err = OpenWatch()
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return w
}

// A watch hears of what happens in its own namespace, also of more than it has room
// for, and of no other's.
func TestWatch(t *testing.T) {
	b := newBench(t, "veth")
	w, elsewhere := watch(t, b.container), watch(t, newNamespace(t))
	changes, others := w.Changes(), elsewhere.Changes()
	change := func(what, name string, f func(h *netlink.Handle, link netlink.Link) error) {
		t.Helper()
		for len(changes) > 0 { // what was heard after the change before
			<-changes
		}
		do(t, b.container, func(h *netlink.Handle) error {
			link, err := h.LinkByName(name)
			if err != nil {
				return err
			}
			return f(h, link)
		})
		select {
		case _, open := <-changes:
			if !open {
				t.Errorf("%s: the end of changes", what)
			}
		case <-time.After(10 * time.Second):
			t.Errorf("%s: nothing is heard", what)
		}
	}
	change("an address", "eth0", func(h *netlink.Handle, l netlink.Link) error {
		return h.AddrAdd(l, &netlink.Addr{IPNet: mustAddr("10.98.0.2/24")})
	})
	change("a route", "eth0", func(h *netlink.Handle, l netlink.Link) error {
		return h.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Dst: mustAddr("10.97.0.0/16"), Scope: netlink.SCOPE_LINK})
	})
	change("a name", "eth0", func(h *netlink.Handle, l netlink.Link) error {
		return errors.Join(h.LinkSetDown(l), h.LinkSetName(l, "eth9"), h.LinkSetUp(l))
	})
	change("a flood", "eth9", func(h *netlink.Handle, l netlink.Link) error {
		for range 3000 {
			if err := errors.Join(h.LinkSetMTU(l, 1300), h.LinkSetMTU(l, 1400)); err != nil {
				return err
			}
		}
		return nil
	})
	change("the end of a link", "eth9", func(h *netlink.Handle, l netlink.Link) error { return h.LinkDel(l) })
	if len(others) > 0 {
		t.Error("a namespace where nothing has happened: a change")
	}
	for _, w := range []*Watch{w, elsewhere} {
		if err := w.Close(); err != nil {
			t.Error(err)
		}
	}
	for range changes { // ends
	}
	for range others {
	}
}

// A link that has lost its addresses is found by who has it already.
func TestLookKeeps(t *testing.T) {
	b := newBench(t, "veth")
	found, err := Look(b.container)
	if err != nil || len(found.Indices) != 1 {
		t.Fatalf("Look = %+v, %v, want eth0", found, err)
	}
	do(t, b.container, func(h *netlink.Handle) error {
		eth0, err := h.LinkByName("eth0")
		if err != nil {
			return err
		}
		return errors.Join(h.AddrDel(eth0, &netlink.Addr{IPNet: mustAddr(guestIP4 + "/24")}), h.AddrDel(eth0, &netlink.Addr{IPNet: mustAddr(guestIP6 + "/64")}))
	})
	if found, err := Look(b.container); err != nil || len(found.Interfaces) != 0 {
		t.Errorf("Look = %+v, %v, want nothing", found, err)
	}
	kept, err := Look(b.container, found.Indices...)
	if err != nil || len(kept.Interfaces) != 1 || kept.Interfaces[0].Name != "eth0" || len(kept.Interfaces[0].Addresses) != 0 || kept.Indices[0] != found.Indices[0] {
		t.Errorf("Look with eth0 kept = %+v, %v", kept, err)
	}
}

// One file of /dev/net/tun makes one tap after the other, also behind a failure.
func TestTapAgain(t *testing.T) {
	b := newBench(t, "veth")
	tun, err := openTunIn(b.container)
	if err != nil {
		t.Fatal(err)
	}
	defer tun.Close()
	for range 3 {
		if _, err := Attach(b.container, "gone0", Options{Tun: tun}); err == nil {
			t.Fatal("Attach to a link that is not there works")
		}
		tap, err := Attach(b.container, "eth0", Options{Tun: tun, Owner: "c"})
		if err != nil {
			t.Fatal(err)
		}
		// Frames come from the peer, through this tap.
		frame := make(chan error, 1)
		go func() {
			tap.File.SetReadDeadline(time.Now().Add(10 * time.Second))
			_, err := tap.File.Read(make([]byte, 1<<16))
			frame <- err
		}()
		go reach(b.peer, guestIP4, 80, 16)
		if err := <-frame; err != nil {
			t.Errorf("read a frame: %v", err)
		}
		if err := errors.Join(tap.File.Close(), Detach(b.container, "eth0", "c"), tap.Remove(b.container), tap.Remove(b.container)); err != nil {
			t.Error(err)
		}
		wantLinks(t, b.container, "eth0", "lo")
	}
	// Whoever has the file still gets nothing from it.
	tap, err := Attach(b.container, "eth0", Options{Tun: tun})
	if err != nil {
		t.Fatal(err)
	}
	defer tap.File.Close()
	if err := tap.Remove(b.container); err != nil {
		t.Fatal(err)
	}
	if n, err := tap.File.Read(make([]byte, 1<<16)); n > 0 || err == nil || err == io.EOF {
		t.Errorf("read of a tap that was removed = %d, %v", n, err)
	}
}

func openTunIn(ns *os.File) (tun *os.File, err error) {
	err = in(ns, func() error {
		tun, err = OpenTun()
		return err
	})
	return tun, err
}

func wantLinks(t *testing.T, ns *os.File, want ...string) {
	t.Helper()
	do(t, ns, func(h *netlink.Handle) error {
		links, err := h.LinkList()
		var got []string
		for _, l := range links {
			got = append(got, l.Attrs().Name)
		}
		slices.Sort(got)
		if !slices.Equal(got, want) {
			t.Errorf("links = %v, want %v", got, want)
		}
		return err
	})
}

// A resolver that comes later is served on a link that is attached already.
func TestUpdateForResolver(t *testing.T) {
	b := newBench(t, "veth")
	tap, err := Attach(b.container, "eth0", Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer tap.File.Close()
	b.boot(tap)
	echo(t, b.peer, peerIP4, 53)
	if err := reach(b.container, peerIP4, 53, 16); err == nil {
		t.Error("the namespace's stack hears of answers before Update")
	}
	for range 2 {
		if err := tap.Update(b.container, "eth0", Options{HostResolver: true}); err != nil {
			t.Fatal(err)
		}
	}
	echo(t, b.guest, guestIP4, 80)
	for what, err := range map[string]error{
		"namespace to peer": reach(b.container, peerIP4, 53, 1<<16),
		"peer to guest":     reach(b.peer, guestIP4, 80, 1<<16),
	} {
		if err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	if err := Detach(b.container, "eth0", ""); err != nil {
		t.Error(err)
	}
	do(t, b.container, func(h *netlink.Handle) error {
		eth0, err := h.LinkByName("eth0")
		if err != nil {
			return err
		}
		kind, err := ingressKind(h, eth0)
		if kind != "" {
			t.Errorf("ingress qdisc after Detach: %s", kind)
		}
		return err
	})
}
