// Command standin is what critest's images have that Debian's busybox lacks, or has otherwise. Its name says which:
//
//	nginx PORT, httpd PORT   serves a page, and leaves a pid file
//	nnp                      prints its effective user id; its image makes it setuid
//	pgrep NAME               prints the pids of processes of that name
//	ipcs -m                  prints the segments of shared memory
package main

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
)

func main() {
	name, args := filepath.Base(os.Args[0]), os.Args[1:]
	if err := run(name, args); err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", name, err)
		os.Exit(1)
	}
}

func run(name string, args []string) error {
	switch {
	case name == "nnp":
		fmt.Printf("Effective uid: %d\n", os.Geteuid())
		return nil
	case name == "ipcs":
		segments, err := os.ReadFile("/proc/sysvipc/shm")
		fmt.Printf("%s", segments)
		return err
	case len(args) == 0:
		return fmt.Errorf("usage: %s ARGUMENT", name)
	case name == "pgrep":
		return pgrep(args[0])
	}
	return serve(name, args[0])
}

func pgrep(name string) error {
	paths, err := filepath.Glob("/proc/[0-9]*/comm")
	if err != nil {
		return err
	}
	for _, path := range paths {
		comm, err := os.ReadFile(path)
		if err == nil && strings.TrimSpace(string(comm)) == name { // else it has ended
			fmt.Println(filepath.Base(filepath.Dir(path)))
		}
	}
	return nil
}

func serve(name, port string) error {
	if err := os.WriteFile(filepath.Join("/var/run", name+".pid"), fmt.Appendln(nil, os.Getpid()), 0o644); err != nil {
		return err
	}
	fmt.Println(name, "serves at port", port)
	return http.ListenAndServe(":"+port, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintln(w, "a page of", name)
	}))
}
