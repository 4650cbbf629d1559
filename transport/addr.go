package transport

import (
	"net"
	"strconv"
	"strings"

	"github.com/gearsfs/gearsfs"
)

// Addr is where a node listens.
type Addr struct {
	Network string // "tcp" or "unix"
	Address string // "host:port", or the path of a socket
}

// String is the form that ParseAddr reads.
func (a Addr) String() string {
	if a.Network == "unix" {
		return unixPrefix + a.Address
	}
	return a.Address
}

const unixPrefix = "unix:"

// unixPathBytesMax is what sockaddr_un holds beside the final NUL, unix(7).
const unixPathBytesMax = 107

// ParseAddr reads "host:port" or "unix:PATH". An empty host is this machine, or
// all of its addresses for Listen; port 0 lets Listen choose one. The error is
// gearsfs.ErrInvalid and says what is wrong.
func ParseAddr(s string) (Addr, error) {
	if i := strings.IndexFunc(s, func(r rune) bool { return r == ',' || r < 0x20 || r == 0x7f }); i >= 0 {
		return Addr{}, gearsfs.ErrInvalid.Because("address %q: must not contain %q", s, s[i])
	}
	if path, ok := strings.CutPrefix(s, unixPrefix); ok {
		switch {
		case path == "":
			return Addr{}, gearsfs.ErrInvalid.Because("address %q: the path of the socket is missing", s)
		case path[0] == '@':
			return Addr{}, gearsfs.ErrInvalid.Because("address %q: abstract sockets have no permissions and are not supported (write ./@ for a file)", s)
		case len(path) > unixPathBytesMax:
			return Addr{}, gearsfs.ErrInvalid.Because("address %q: the path of a socket has at most %d bytes, this has %d", s, unixPathBytesMax, len(path))
		}
		return Addr{Network: "unix", Address: path}, nil
	}
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		return Addr{}, gearsfs.ErrInvalid.Because("address %q: is neither host:port nor unix:PATH", s)
	}
	if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		return Addr{}, gearsfs.ErrInvalid.Because("address %q: the port is not a number from 0 to 65535", s)
	}
	if strings.ContainsAny(host, "/@ ") {
		return Addr{}, gearsfs.ErrInvalid.Because("address %q: %q is not a host", s, host)
	}
	return Addr{Network: "tcp", Address: net.JoinHostPort(host, port)}, nil
}

// ParseAddrs reads one or more addresses with commas between them.
func ParseAddrs(s string) ([]Addr, error) {
	if s == "" {
		return nil, gearsfs.ErrInvalid.Because("the address is missing: host:port or unix:PATH")
	}
	var addrs []Addr
	for part := range strings.SplitSeq(s, ",") {
		a, err := ParseAddr(strings.TrimSpace(part))
		if err != nil {
			return nil, err
		}
		addrs = append(addrs, a)
	}
	return addrs, nil
}
