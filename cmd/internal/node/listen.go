package node

import (
	"crypto/tls"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/transport"
)

// listenAddrs reads the addresses to serve at, and refuses those that would be
// open to the network without TLS.
func listenAddrs(cfg Config) ([]transport.Addr, error) {
	var addrs []transport.Addr
	for _, s := range cfg.Listen {
		list, err := transport.ParseAddrs(s)
		if err != nil {
			return nil, fmt.Errorf("listen at %s: %w", s, err)
		}
		addrs = append(addrs, list...)
	}
	for _, addr := range addrs {
		if err := checkOpen(addr, cfg.TLS != nil || cfg.Insecure); err != nil {
			return nil, fmt.Errorf("listen at %w", err)
		}
	}
	return addrs, nil
}

// checkOpen refuses an address that would be open to the network, unless that
// is allowed.
func checkOpen(addr transport.Addr, allowed bool) error {
	if addr.Network != "tcp" || allowed {
		return nil
	}
	tcp, err := net.ResolveTCPAddr("tcp", addr.Address)
	if err != nil {
		return gearsfs.ErrInvalid.Because("%s: %v", addr, err)
	}
	if !tcp.IP.IsLoopback() {
		return gearsfs.ErrInvalid.Because("%s: beyond loopback that needs TLS (--tls-cert, --tls-key, --tls-ca) or --insecure", addr)
	}
	return nil
}

// ListenHTTP listens where a node answers HTTP, by the rules of Config.Listen.
func ListenHTTP(at string, tlsConfig *tls.Config, insecure bool) (*transport.Listener, error) {
	addr, err := transport.ParseAddr(at)
	if err == nil {
		err = checkOpen(addr, tlsConfig != nil || insecure)
	}
	var l *transport.Listener
	if err == nil {
		l, err = transport.Listen(addr)
	}
	if err != nil {
		return nil, fmt.Errorf("--http: %w", err)
	}
	return l, nil
}

// checkAddrs finds what is no address before anything is made.
func checkAddrs(cfg Config) error {
	for _, addr := range cfg.Advertise {
		if _, err := transport.ParseAddrs(addr); err != nil {
			return fmt.Errorf("advertise %s: %w", addr, err)
		}
	}
	if cfg.Join == "" {
		return nil
	}
	if _, err := transport.ParseAddrs(cfg.Join); err != nil {
		return fmt.Errorf("join %s: %w", cfg.Join, err)
	}
	return nil
}

// listensAt are the addresses that other nodes are told where nothing else is
// said: the socket in the data directory, for those on this machine, and what
// the node listens at. Where that is every address of the machine, its name
// stands for them.
func (n *Node) listensAt(data string) ([]string, error) {
	var list []string
	if inside, err := socketIn(data); err == nil { // else it does without
		list = append(list, inside.String())
	}
	for _, l := range n.listeners {
		addr := l.Address()
		if addr.Network == "unix" {
			path, err := filepath.Abs(addr.Address)
			if err != nil {
				return nil, fmt.Errorf("listen at %s: %w", addr, err)
			}
			addr.Address = path
		} else if tcp, ok := l.Addr().(*net.TCPAddr); ok && tcp.IP.IsUnspecified() {
			host, err := os.Hostname()
			if err != nil {
				return nil, fmt.Errorf("the host's name: %w", err)
			}
			addr.Address = net.JoinHostPort(host, strconv.Itoa(tcp.Port))
		}
		list = append(list, addr.String())
	}
	return list, nil
}
