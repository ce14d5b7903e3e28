// The benchmark, which draws: kept out of the product's go.mod so that the plotting library's dependencies do not choose
// versions for it. The product is the one beside it.
module github.com/boxlite-oci/boxlite/bench

go 1.26.0

replace github.com/boxlite-oci/boxlite => ../

require (
	github.com/boxlite-oci/boxlite v0.0.0-00010101000000-000000000000
	github.com/hashicorp/yamux v0.1.2
	github.com/opencontainers/runtime-spec v1.3.0
	github.com/vishvananda/netlink v1.3.1
	golang.org/x/sys v0.49.0
	gonum.org/v1/plot v0.17.0
)

require (
	codeberg.org/go-fonts/liberation v0.5.0 // indirect
	codeberg.org/go-latex/latex v0.2.0 // indirect
	codeberg.org/go-pdf/fpdf v0.11.1 // indirect
	git.sr.ht/~sbinet/gg v0.7.0 // indirect
	github.com/ajstarks/svgo v0.0.0-20211024235047-1546f124cd8b // indirect
	github.com/golang/freetype v0.0.0-20170609003504-e2365dfdc4a0 // indirect
	github.com/vishvananda/netns v0.0.5 // indirect
	golang.org/x/image v0.30.0 // indirect
	golang.org/x/text v0.28.0 // indirect
)
