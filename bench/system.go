package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"github.com/gearsfs/gearsfs/bench/load"
)

// system is something on one or more nodes that keeps records.
type system interface {
	String() string
	// can tells whether it knows such work.
	can(w load.Work) bool
	// start starts the nodes with no data and waits until they are ready.
	start(ctx context.Context) error
	measure(ctx context.Context, w load.Work) (load.Figures, error)
	// failover kills the leader, measures as load.Failover says, and brings the
	// node back.
	failover(ctx context.Context) (time.Duration, error)
	// check tells whether everything is there that was put in failovers.
	check(ctx context.Context) error
	nodes() []*member
	// stop ends the nodes and removes their data.
	stop() error
}

const clusterNodes = 3

func systemNames(systems []system) (names []string) {
	for _, s := range systems {
		names = append(names, s.String())
	}
	return names
}

// member is a node of a system.
type member struct {
	name, program, ready string
	args                 []string
	*process             // nil until it is started
}

// members are the nodes of a system.
type members struct {
	b   *bench
	dir string // of their data
	all []*member
}

func (m *members) nodes() []*member { return m.all }

// launch starts a node, or starts it again.
func (m *members) launch(ctx context.Context, n *member) (err error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	n.process, err = m.b.startProcess(ctx, n.ready, n.program, n.args...)
	return err
}

func (m *members) stop() error {
	var errs []error
	for _, n := range m.all {
		if n.process != nil {
			errs = append(errs, n.kill())
		}
	}
	m.all = nil
	return errors.Join(append(errs, os.RemoveAll(m.dir))...)
}

func (m *members) byName(name string) (*member, error) {
	for _, n := range m.all {
		if n.name == name {
			return n, nil
		}
	}
	return nil, fmt.Errorf("the leader %q is none of the nodes", name)
}

// relaunch starts the nodes again that have ended.
func (m *members) relaunch(ctx context.Context) error {
	for _, n := range m.all {
		select {
		case <-n.exited:
			if err := m.launch(ctx, n); err != nil {
				return err
			}
		default:
		}
	}
	return nil
}

// freePorts returns addresses on the loopback interface that nobody listens on.
func freePorts(n int) (addrs []string, err error) {
	for range n {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer ln.Close()
		addrs = append(addrs, ln.Addr().String())
	}
	return addrs, nil
}
