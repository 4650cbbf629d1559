// Command peers puts load on servers of NATS, etcd, Redis or beanstalkd, as the
// bench puts it on GearsFS, and prints what it measured as one line of JSON:
//
//	peers nats|etcd|redis-list|redis-stream|beanstalkd NAME=URL,NAME=URL,... WORK
//
// WORK is a load.Work in JSON. Beyond what load can do it knows Setup, which
// waits until the servers are ready, and Failover, which kills the leader; PIDs
// says which process that is.
//
// It is a module of its own, so that what it needs is not needed by GearsFS; its
// go.mod names the versions of the servers, too.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/gearsfs/gearsfs/bench/load"
)

// What can be done beside what load knows.
const (
	setup    = "setup"
	failover = "failover"
)

// job is what the bench asks for.
type job struct {
	load.Work
	PIDs map[string]int `json:"pids"` // of the servers, by name
}

// peer is a system that is measured.
type peer interface {
	// setup waits until its servers are ready.
	setup(ctx context.Context) error
	// queue makes a new one.
	queue(ctx context.Context, w load.Work) (load.Queue, error)
}

// replicated is a peer of several servers.
type replicated interface {
	peer
	// leader is the server that puts go through.
	leader(ctx context.Context) (string, error)
	// putter connects to all servers and returns what puts one record, or gives
	// up after a short while.
	putter(ctx context.Context) (put func(ctx context.Context) error, done func(), err error)
}

func main() {
	if err := run(context.Background(), os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "peers:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	if len(args) != 3 {
		return errors.New("usage: peers nats|etcd|redis-list|redis-stream|beanstalkd NAME=URL,... WORK")
	}
	urls := make(map[string]string)
	for server := range strings.SplitSeq(args[1], ",") {
		name, url, ok := strings.Cut(server, "=")
		if !ok {
			return fmt.Errorf("%q is not NAME=URL", server)
		}
		urls[name] = url
	}
	var j job
	if err := json.Unmarshal([]byte(args[2]), &j); err != nil {
		return fmt.Errorf("WORK: %w", err)
	}
	var p peer
	switch args[0] {
	case "nats":
		p = &natsPeer{urls: urls}
	case "etcd":
		p = &etcdPeer{urls}
	case "redis-list", "redis-stream":
		p = &redisPeer{addr: only(urls), stream: args[0] == "redis-stream"}
	case "beanstalkd":
		p = &beanstalkPeer{addr: only(urls)}
	default:
		return fmt.Errorf("no peer %q", args[0])
	}
	figures, err := do(ctx, p, j)
	if err != nil {
		return fmt.Errorf("%s %s: %w", args[0], j.Do, err)
	}
	return json.NewEncoder(os.Stdout).Encode(figures)
}

func do(ctx context.Context, p peer, j job) (load.Figures, error) {
	switch j.Do {
	case setup:
		return load.Figures{}, p.setup(ctx)
	case failover:
		r, ok := p.(replicated)
		if !ok {
			return load.Figures{}, errors.New("there is but one server")
		}
		took, err := killLeader(ctx, r, j.PIDs)
		return load.Spread([]time.Duration{took}), err
	}
	q, err := p.queue(ctx, j.Work)
	if err != nil {
		return load.Figures{}, err
	}
	return load.Measure(ctx, j.Work, q)
}

// only returns the URL of the only server.
func only(urls map[string]string) string {
	for _, url := range urls {
		return url
	}
	return ""
}

// retry repeats what fails while servers come up.
func retry(ctx context.Context, f func(ctx context.Context) error) error {
	for end := time.Now().Add(time.Minute); ; {
		attempt, cancel := context.WithTimeout(ctx, 5*time.Second)
		err := f(attempt)
		cancel()
		if err == nil || ctx.Err() != nil || time.Now().After(end) {
			return err
		}
		time.Sleep(retryTime)
	}
}

// retryTime is how long retry waits in between.
const retryTime = 20 * time.Millisecond

// killLeader kills the leader under a load of puts, one at a time, and returns
// how long it took until one was acknowledged that began after that.
func killLeader(ctx context.Context, p replicated, pids map[string]int) (time.Duration, error) {
	put, done, err := p.putter(ctx)
	if err != nil {
		return 0, err
	}
	defer done()
	leader, err := p.leader(ctx)
	if err != nil {
		return 0, err
	}
	pid, ok := pids[leader]
	if !ok {
		return 0, fmt.Errorf("the leader %q is none of the processes", leader)
	}
	return load.Failover(ctx, put, func() error { return syscall.Kill(pid, syscall.SIGKILL) })
}
