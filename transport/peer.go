package transport

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// PeerKind says what proves who a peer is.
type PeerKind string

const (
	PeerUnix  PeerKind = "unix"  // the kernel: UID, GIDs and PID are true
	PeerTLS   PeerKind = "tls"   // a certificate, where Name is not empty
	PeerTCP   PeerKind = "tcp"   // nothing
	PeerOther PeerKind = "other" // nothing: a net.Conn of another kind
)

// Peer is who is at the other end of a connection.
type Peer struct {
	Kind PeerKind
	Addr string // the socket's remote address; empty for most unix sockets
	// Here says of TCP, with TLS or without, that Addr is one of this machine: of
	// who connected, or of who forwards its connection.
	Here bool

	// Of unix sockets: who connected, or who listens, at that time. The first
	// of GIDs is the primary group.
	UID  uint32
	GIDs []uint32
	PID  int

	// Name is the common name of the verified certificate.
	Name string
}

// peerOf asks the kernel, or the certificate, who is behind nc, which is sock or
// the TLS over it.
func peerOf(nc, sock net.Conn) (Peer, error) {
	p := Peer{Kind: PeerOther, Addr: sock.RemoteAddr().String(), Here: sameHost(sock)}
	if over, ok := nc.(*tls.Conn); ok {
		p.Kind = PeerTLS
		if chains := over.ConnectionState().VerifiedChains; len(chains) > 0 {
			p.Name = chains[0][0].Subject.CommonName
		}
		return p, nil
	}
	switch s := sock.(type) {
	case *net.TCPConn:
		p.Kind = PeerTCP
	case *net.UnixConn:
		p.Kind = PeerUnix
		return p, p.askKernel(s)
	}
	return p, nil
}

// sameHost says whether a TCP socket's other end has an address of this machine.
func sameHost(sock net.Conn) bool {
	from, tcp := sock.RemoteAddr().(*net.TCPAddr)
	to, _ := sock.LocalAddr().(*net.TCPAddr)
	return tcp && (from.IP.IsLoopback() || to != nil && from.IP.Equal(to.IP))
}

// askKernel fills in the credentials of a unix socket's peer, socket(7)
// SO_PEERCRED and SO_PEERGROUPS.
func (p *Peer) askKernel(s *net.UnixConn) error {
	raw, err := s.SyscallConn()
	if err != nil {
		return err
	}
	var asked error
	err = raw.Control(func(fd uintptr) {
		cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
		if err != nil {
			asked = fmt.Errorf("SO_PEERCRED: %w", err)
			return
		}
		p.UID, p.PID = cred.Uid, int(cred.Pid)
		groups, err := peerGroups(fd)
		if err != nil && !errors.Is(err, unix.ENOPROTOOPT) { // Linux before 4.13
			asked = fmt.Errorf("SO_PEERGROUPS: %w", err)
			return
		}
		p.GIDs = []uint32{cred.Gid}
		for _, g := range groups {
			if g != cred.Gid {
				p.GIDs = append(p.GIDs, g)
			}
		}
	})
	return errors.Join(err, asked)
}

// groupsMax is the kernel's NGROUPS_MAX.
const groupsMax = 65536

// peerGroups asks for the supplementary groups, again with more room where the
// kernel says that there are more.
func peerGroups(fd uintptr) ([]uint32, error) {
	groups := make([]uint32, 64)
	for {
		size := uint32(len(groups) * 4)
		_, _, errno := syscall.Syscall6(syscall.SYS_GETSOCKOPT, fd, unix.SOL_SOCKET, unix.SO_PEERGROUPS,
			uintptr(unsafe.Pointer(&groups[0])), uintptr(unsafe.Pointer(&size)), 0)
		switch {
		case errno == 0:
			return groups[:size/4], nil
		case errno == unix.ERANGE && int(size/4) > len(groups) && size/4 <= groupsMax:
			groups = make([]uint32, size/4)
		default:
			return nil, errno
		}
	}
}
