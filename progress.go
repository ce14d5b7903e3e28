package main

import (
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/term"
)

// tick is how often a terminal is told how long something has taken.
const tick = time.Second

// underWay tells a terminal what is being done and since when, from the first tick
// on, until the returned function is called. That removes the line. What is no
// terminal is told nothing.
func underWay(to io.Writer, what string, tick time.Duration) (done func()) {
	f, ok := to.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) {
		return func() {}
	}
	stop, stopped := make(chan struct{}), make(chan struct{})
	began := time.Now()
	go func() {
		defer close(stopped)
		ticker := time.NewTicker(tick)
		defer ticker.Stop()
		for {
			select {
			case <-ticker.C:
				fmt.Fprintf(f, "\r\x1b[K%s: %.0f s", what, time.Since(began).Seconds())
			case <-stop:
				fmt.Fprint(f, "\r\x1b[K")
				return
			}
		}
	}()
	return func() {
		close(stop)
		<-stopped
	}
}
