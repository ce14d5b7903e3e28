package hostnet

import "fmt"

// Probe tries what Attach does, in a network namespace of its own, and leaves
// nothing behind. The error says what this user or this machine lacks.
func Probe() error {
	ns, err := New()
	if err != nil {
		return err
	}
	defer ns.Close()
	var link *Tap // any link will do, and a tap needs nothing more
	if err := in(ns, func() (err error) {
		link, err = makeTap(nil)
		return err
	}); err != nil {
		return named(err)
	}
	defer link.File.Close()
	tap, err := Attach(ns, link.Name, Options{})
	if err != nil {
		return fmt.Errorf("traffic control (act_mirred, cls_u32, sch_ingress) and routing rules: %w", err)
	}
	return tap.File.Close()
}
