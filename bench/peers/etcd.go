package main

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"github.com/gearsfs/gearsfs/bench/load"
)

// etcdPeer is etcd. It has no queue: its puts are those of new keys, and who
// waits is a watcher. Clients connect to the leader.
type etcdPeer struct {
	urls map[string]string // of the members, by name
}

func (p *etcdPeer) dial(name string) (*clientv3.Client, error) {
	var urls []string
	for _, each := range names(p.urls) {
		if name == "" || name == each {
			urls = append(urls, p.urls[each])
		}
	}
	return clientv3.New(clientv3.Config{Endpoints: urls, DialTimeout: 5 * time.Second, Logger: zap.NewNop()})
}

// setup waits until all members know the leader and answer.
func (p *etcdPeer) setup(ctx context.Context) error {
	c, err := p.dial("")
	if err != nil {
		return err
	}
	defer c.Close()
	return retry(ctx, func(ctx context.Context) error {
		for name, url := range p.urls {
			status, err := c.Status(ctx, url)
			switch {
			case err != nil:
				return err
			case status.Leader == 0 || status.RaftIndex > status.RaftAppliedIndex+100:
				return fmt.Errorf("member %s is behind", name)
			}
		}
		_, err := c.Put(ctx, "ready", "")
		return err
	})
}

func (p *etcdPeer) leader(ctx context.Context) (string, error) {
	c, err := p.dial("")
	if err != nil {
		return "", err
	}
	defer c.Close()
	for name, url := range p.urls {
		status, err := c.Status(ctx, url)
		if err == nil && status.Leader == status.Header.MemberId {
			return name, nil
		}
	}
	return "", errors.New("no member leads")
}

func (p *etcdPeer) clients(ctx context.Context, n int) (all []*clientv3.Client, err error) {
	leader, err := p.leader(ctx)
	if err != nil {
		return nil, err
	}
	for range n {
		c, err := p.dial(leader)
		if err != nil {
			return nil, err
		}
		if _, err := c.Get(ctx, "ready"); err != nil { // connects
			return nil, err
		}
		all = append(all, c)
	}
	return all, nil
}

func closeClients(clients []*clientv3.Client) {
	for _, c := range clients {
		c.Close() //nolint:errcheck // nothing is under way
	}
}

var nextKey atomic.Uint64

// newKey is one that nobody has put.
func newKey() string { return fmt.Sprintf("jobs/%x/%016x", start, nextKey.Add(1)) }

var (
	start = time.Now().UnixNano()
	value = string(payload)
)

func (p *etcdPeer) put(ctx context.Context, w load.Work) (load.Figures, error) {
	clients, err := p.clients(ctx, w.Clients)
	if err != nil {
		return load.Figures{}, err
	}
	defer closeClients(clients)
	return load.Run(ctx, w.Clients, w.Time, func(ctx context.Context, i int) (int, error) {
		c := clients[i]
		switch {
		case w.Batch == 1:
			_, err := c.Put(ctx, newKey(), value)
			return 1, err
		case w.Single:
			group, ctx := errgroup.WithContext(ctx)
			for range w.Batch {
				group.Go(func() error {
					_, err := c.Put(ctx, newKey(), value)
					return err
				})
			}
			return w.Batch, group.Wait()
		}
		ops := make([]clientv3.Op, w.Batch)
		for i := range ops {
			ops[i] = clientv3.OpPut(newKey(), value)
		}
		_, err := c.Txn(ctx).Then(ops...).Commit()
		return w.Batch, err
	})
}

func (p *etcdPeer) take(context.Context, load.Work) (load.Figures, error) {
	return load.Figures{}, errors.New("etcd has no queue")
}

func (p *etcdPeer) wake(ctx context.Context, w load.Work) (load.Figures, error) {
	clients, err := p.clients(ctx, 2)
	if err != nil {
		return load.Figures{}, err
	}
	defer closeClients(clients)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	watch := clients[1].Watch(ctx, "wake/", clientv3.WithPrefix(), clientv3.WithCreatedNotify())
	<-watch
	arrived := make(chan time.Time, 1)
	go func() {
		for answer := range watch {
			for range answer.Events {
				arrived <- time.Now()
			}
		}
	}()
	return load.Sample(ctx, w.Time, func(ctx context.Context) (time.Duration, error) {
		begin := time.Now()
		if _, err := clients[0].Put(ctx, "wake/"+newKey(), value); err != nil {
			return 0, err
		}
		return (<-arrived).Sub(begin), nil
	})
}

func (p *etcdPeer) putter(ctx context.Context) (func(ctx context.Context) error, func(), error) {
	c, err := p.dial("")
	if err != nil {
		return nil, nil, err
	}
	return func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
		defer cancel()
		_, err := c.Put(ctx, newKey(), value)
		return err
	}, func() { c.Close() }, nil //nolint:errcheck // nothing is under way
}
