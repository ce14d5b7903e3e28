// Package systemd tests boxlite where systemd is PID 1 and cgroup v2 the only one, with the engines of Debian 13 as that
// release starts them:
//
//	this machine                 go test: TestSystemd
//	  |                            |  makes two disks: the image images/host, and one with boxlite, its parts and this test
//	  +- QEMU, TCG, -cpu max  <----+
//	       |  Debian 13: systemd, dockerd and containerd as its units. check.service starts run
//	       +- run: this test again, TestInsideBefore; a reboot; TestInsideAfter; power off
//	            +- docker, podman, boxlite
//	                 +- QEMU, -accel kvm: QEMU's TCG emulates AMD's SVM
//
// What the test inside prints comes out by a serial port, line by line. It takes twenty minutes. `make test-systemd`
// runs it, and `make test` does not.
package systemd
