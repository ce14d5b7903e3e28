package seccomp

import "github.com/opencontainers/runtime-spec/specs-go"

// abis are those of an arm64 kernel, the native one first.
var abis = []abi{
	{arch: specs.ArchAARCH64, audit: 0xc00000b7, table: tableAARCH64},
	{arch: specs.ArchARM, audit: 0x40000028, table: tableARM, narrow: true},
}
