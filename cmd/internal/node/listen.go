package node

import (
	"fmt"
	"net"

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
		if addr.Network != "tcp" || cfg.TLS != nil || cfg.Insecure {
			continue
		}
		tcp, err := net.ResolveTCPAddr("tcp", addr.Address)
		if err != nil {
			return nil, gearsfs.ErrInvalid.Because("listen at %s: %v", addr, err)
		}
		if !tcp.IP.IsLoopback() {
			return nil, gearsfs.ErrInvalid.Because(
				"listen at %s: beyond loopback that needs TLS (--tls-cert, --tls-key, --tls-ca) or --insecure", addr)
		}
	}
	return addrs, nil
}
