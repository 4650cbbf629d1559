package main

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"golang.org/x/sys/unix"
)

func TestModeText(t *testing.T) {
	for mode, want := range map[uint32]string{
		unix.S_IFREG | 0o644:                 "-rw-r--r--",
		unix.S_IFDIR | 0o1777:                "drwxrwxrwt",
		unix.S_IFLNK | 0o777:                 "lrwxrwxrwx",
		unix.S_IFREG | unix.S_ISUID | 0o4755: "-rwsr-xr-x",
		unix.S_IFREG | unix.S_ISGID | 0o640:  "-rw-r-S---",
		unix.S_IFSOCK:                        "s---------",
		unix.S_IFIFO | 0o600:                 "prw-------",
		0o7000:                               "?--S--S--T",
	} {
		assert.Equal(t, want, modeText(mode), "%o", mode)
	}
}
