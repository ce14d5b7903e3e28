// The programs that runc's own tests call. The version of runc is also that of the tests: the one that Debian 12 has, as they
// are held against its runc.
module github.com/boxlite-oci/boxlite/conformance/runc/suite

go 1.26.0

tool (
	github.com/opencontainers/runc/contrib/cmd/recvtty
	github.com/opencontainers/runc/contrib/cmd/sd-helper
)

require (
	github.com/cilium/ebpf v0.7.0 // indirect
	github.com/containerd/console v1.0.3 // indirect
	github.com/coreos/go-systemd/v22 v22.3.2 // indirect
	github.com/cpuguy83/go-md2man/v2 v2.0.0-20190314233015-f79a8a8ca69d // indirect
	github.com/cyphar/filepath-securejoin v0.2.3 // indirect
	github.com/godbus/dbus/v5 v5.0.6 // indirect
	github.com/moby/sys/mountinfo v0.5.0 // indirect
	github.com/opencontainers/runc v1.1.5 // indirect
	github.com/opencontainers/runtime-spec v1.0.3-0.20210326190908-1c3f411f0417 // indirect
	github.com/russross/blackfriday/v2 v2.0.1 // indirect
	github.com/shurcooL/sanitized_anchor_name v1.0.0 // indirect
	github.com/sirupsen/logrus v1.8.1 // indirect
	github.com/urfave/cli v1.22.1 // indirect
	golang.org/x/sys v0.0.0-20211116061358-0a5406a5449c // indirect
)
