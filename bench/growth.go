package main

import (
	"fmt"
	"slices"
	"time"
)

// growth starts container after container and leaves them idle: does the hundredth start, weigh and answer like the first?
func growth(h *host, n repetitions, r *result) error {
	s := h.boxlite()
	id := func(i int) string { return fmt.Sprintf("bench-growth-%d", i) }
	defer func() {
		for i := range n.growth[len(n.growth)-1] {
			_, _ = s.run("delete", "--force", id(i+1)) // what was not started is no error
		}
	}()
	for i := 1; i <= n.growth[len(n.growth)-1]; i++ {
		bundle, err := h.bundle(id(i), "sleep", "3600")
		if err != nil {
			return err
		}
		begin := func() (took float64, err error) {
			began := time.Now()
			if err := s.detached("create", "--bundle", bundle, id(i)); err != nil {
				return 0, err
			}
			err = s.detached("start", id(i))
			return time.Since(began).Seconds(), err
		}
		if !slices.Contains(n.growth, i) {
			if _, err := begin(); err != nil {
				return err
			}
			continue
		}
		what := fmt.Sprintf("with %d containers: ", i)
		time.Sleep(settle) // those before it shall be idle
		for range n.last - 1 {
			took, err := begin()
			if err != nil {
				return err
			}
			r.add(what+"create and start", warm, seconds, took)
			if err := s.detached("delete", "--force", id(i)); err != nil {
				return err
			}
		}
		took, err := begin()
		if err != nil {
			return err
		}
		r.add(what+"create and start", warm, seconds, took)
		time.Sleep(settle)
		pss, err := h.pss(id(i))
		if err != nil {
			return err
		}
		r.add(what+"memory of the last", warm, mebibytes, pss)
		for range n.exec {
			began := time.Now()
			if err := s.detached("exec", id(i), "true"); err != nil {
				return err
			}
			r.add(what+"exec in the last", warm, seconds, time.Since(began).Seconds())
		}
	}
	return nil
}
