package main

// forget has the kernel forget every file that nobody uses, with its pages, as an
// inode that has some cannot be forgotten. The host asks for it when it has many
// files open for the guest.
func (s *server) forget(*struct{}) (any, error) {
	return nil, writeFile("/proc/sys/vm/drop_caches", "3")
}
