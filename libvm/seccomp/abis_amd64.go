package seccomp

import "github.com/opencontainers/runtime-spec/specs-go"

const x32Bit = 0x40000000

// abis are those of an amd64 kernel, the native one first.
var abis = []abi{
	{arch: specs.ArchX86_64, audit: 0xc000003e, table: tableX86_64},
	{arch: specs.ArchX32, audit: 0xc000003e, bit: x32Bit, table: tableX32},
	{arch: specs.ArchX86, audit: 0x40000003, table: tableX86, narrow: true},
}
