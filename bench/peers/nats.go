package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nuid"

	"github.com/gearsfs/gearsfs/bench/load"
)

const (
	stream   = "jobs"
	subject  = "jobs.k"
	consumer = "workers"
	// atomicStream takes batches that are stored whole or not at all.
	atomicStream  = "batches"
	atomicSubject = "batches.k"
)

const (
	// prefetch is how many messages a consumer asks for ahead. With 1, and with
	// 100, it took half to three quarters as many a second as with 16.
	prefetch = 16
	// emptyTime is how long it waits for one before there are none left.
	emptyTime = 5 * time.Second
)

// natsPeer is NATS JetStream: a work queue of three replicas in files, with a
// durable pull consumer that acknowledges explicitly. Clients connect to the
// server that leads what they use, which saves them a hop.
type natsPeer struct {
	urls map[string]string // of the servers, by name
}

func (p *natsPeer) dial(name string) (*nats.Conn, error) {
	urls := p.urls[name]
	if name == "" {
		for _, url := range p.urls {
			urls += "," + url
		}
		urls = urls[1:]
	}
	return nats.Connect(urls, nats.ReconnectWait(10*time.Millisecond), nats.ReconnectJitter(10*time.Millisecond, 0), nats.MaxReconnects(-1))
}

// admin calls f with a connection to any server.
func (p *natsPeer) admin(ctx context.Context, f func(js jetstream.JetStream) error) error {
	var nc *nats.Conn
	err := retry(ctx, func(context.Context) (err error) {
		nc, err = p.dial("")
		return err
	})
	if err != nil {
		return err
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		return err
	}
	return f(js)
}

// retry repeats what fails while a cluster comes up.
func retry(ctx context.Context, f func(ctx context.Context) error) error {
	for end := time.Now().Add(time.Minute); ; {
		attempt, cancel := context.WithTimeout(ctx, 5*time.Second)
		err := f(attempt)
		cancel()
		if err == nil || ctx.Err() != nil || time.Now().After(end) {
			return err
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// setup makes the streams and the consumer anew, all of them empty.
func (p *natsPeer) setup(ctx context.Context) error {
	return p.admin(ctx, func(js jetstream.JetStream) error {
		for _, cfg := range []jetstream.StreamConfig{
			{Name: stream, Subjects: []string{subject}},
			{Name: atomicStream, Subjects: []string{atomicSubject}, AllowAtomicPublish: true},
		} {
			cfg.Retention, cfg.Storage, cfg.Replicas = jetstream.WorkQueuePolicy, jetstream.FileStorage, len(p.urls)
			if err := retry(ctx, func(ctx context.Context) error {
				if err := js.DeleteStream(ctx, cfg.Name); err != nil && !errors.Is(err, jetstream.ErrStreamNotFound) {
					return err
				}
				_, err := js.CreateStream(ctx, cfg)
				return err
			}); err != nil {
				return fmt.Errorf("make stream %s: %w", cfg.Name, err)
			}
		}
		err := retry(ctx, func(ctx context.Context) error {
			_, err := js.CreateOrUpdateConsumer(ctx, stream, jetstream.ConsumerConfig{
				Durable: consumer, AckPolicy: jetstream.AckExplicitPolicy, MaxAckPending: 100_000, MaxWaiting: 1024,
			})
			return err
		})
		if err != nil {
			return fmt.Errorf("make consumer: %w", err)
		}
		return retry(ctx, func(ctx context.Context) error { return p.current(ctx, js) })
	})
}

// current returns nil when all replicas are up to date.
func (p *natsPeer) current(ctx context.Context, js jetstream.JetStream) error {
	s, err := js.Stream(ctx, stream)
	if err != nil {
		return err
	}
	group := s.CachedInfo().Cluster
	if group == nil || group.Leader == "" || len(group.Replicas) != len(p.urls)-1 {
		return errors.New("the stream has no leader")
	}
	for _, replica := range group.Replicas {
		if !replica.Current || replica.Offline || replica.Lag > 0 {
			return fmt.Errorf("replica %s is behind", replica.Name)
		}
	}
	return nil
}

func (p *natsPeer) leader(ctx context.Context) (name string, err error) {
	err = p.admin(ctx, func(js jetstream.JetStream) error {
		s, err := js.Stream(ctx, stream)
		if err == nil {
			name = s.CachedInfo().Cluster.Leader
		}
		return err
	})
	return name, err
}

// leads returns the server that leads a stream, or its consumer.
func (p *natsPeer) leads(ctx context.Context, ofConsumer bool) (name string, err error) {
	if !ofConsumer {
		return p.leader(ctx)
	}
	err = p.admin(ctx, func(js jetstream.JetStream) error {
		c, err := js.Consumer(ctx, stream, consumer)
		if err == nil {
			name = c.CachedInfo().Cluster.Leader
		}
		return err
	})
	return name, err
}

// natsClient is one client.
type natsClient struct {
	nc       *nats.Conn
	js       jetstream.JetStream
	consumer jetstream.Consumer        // of one that takes
	messages jetstream.MessagesContext // likewise, where it does not wait
	inbox    string                    // for confirmations
	acks     *nats.Subscription        // on inbox
}

func (p *natsPeer) clients(ctx context.Context, n int, take bool) (all []*natsClient, err error) {
	server, err := p.leads(ctx, take)
	if err != nil {
		return nil, err
	}
	for range n {
		c := new(natsClient)
		if c.nc, err = p.dial(server); err != nil {
			return nil, err
		}
		if c.js, err = jetstream.New(c.nc); err != nil {
			return nil, err
		}
		if take {
			if c.consumer, err = c.js.Consumer(ctx, stream, consumer); err != nil {
				return nil, err
			}
			c.inbox = c.nc.NewInbox()
			if c.acks, err = c.nc.SubscribeSync(c.inbox); err != nil {
				return nil, err
			}
		}
		all = append(all, c)
	}
	return all, nil
}

func closeAll(clients []*natsClient) {
	for _, c := range clients {
		if c.messages != nil {
			c.messages.Stop()
		}
		c.nc.Close()
	}
}

var payload = make([]byte, load.RecordBytes)

func (p *natsPeer) put(ctx context.Context, w load.Work) (load.Figures, error) {
	if err := p.setup(ctx); err != nil {
		return load.Figures{}, err
	}
	clients, err := p.clients(ctx, w.Clients, false)
	if err != nil {
		return load.Figures{}, err
	}
	defer closeAll(clients)
	return load.Run(ctx, w.Clients, w.Time, func(ctx context.Context, i int) (int, error) {
		c := clients[i]
		switch {
		case w.Batch == 1:
			_, err := c.js.Publish(ctx, subject, payload)
			return 1, err
		case w.Single:
			return w.Batch, c.publish(w.Batch)
		}
		return w.Batch, c.publishAtomic(ctx, w.Batch)
	})
}

// publish sends n messages and waits for the acknowledgements of all.
func (c *natsClient) publish(n int) error {
	futures := make([]jetstream.PubAckFuture, n)
	for i := range futures {
		var err error
		if futures[i], err = c.js.PublishAsync(subject, payload); err != nil {
			return err
		}
	}
	for _, f := range futures {
		select {
		case <-f.Ok():
		case err := <-f.Err():
			return err
		}
	}
	return nil
}

// publishAtomic sends n messages that are stored whole or not at all: NATS's
// ADR-50.
func (c *natsClient) publishAtomic(ctx context.Context, n int) error {
	id := nuid.Next()
	for i := range n {
		m := nats.NewMsg(atomicSubject)
		m.Data = payload
		m.Header.Set("Nats-Batch-Id", id)
		m.Header.Set("Nats-Batch-Sequence", strconv.Itoa(i+1))
		if i < n-1 {
			if err := c.nc.PublishMsg(m); err != nil {
				return err
			}
			continue
		}
		m.Header.Set("Nats-Batch-Commit", "1")
		answer, err := c.nc.RequestMsgWithContext(ctx, m)
		if err != nil {
			return err
		}
		var ack struct {
			Error *struct{ Description string }
			Count int
		}
		if err := json.Unmarshal(answer.Data, &ack); err != nil {
			return err
		}
		if ack.Error != nil || ack.Count != n {
			return fmt.Errorf("a batch of %d: %s", n, answer.Data)
		}
	}
	return nil
}

// fill puts n records and waits until all servers have them.
func (p *natsPeer) fill(ctx context.Context, n int) error {
	clients, err := p.clients(ctx, 1, false)
	if err != nil {
		return err
	}
	defer closeAll(clients)
	for n > 0 {
		batch := min(n, 1000)
		if err := clients[0].publish(batch); err != nil {
			return err
		}
		n -= batch
	}
	return retry(ctx, func(ctx context.Context) error { return p.current(ctx, clients[0].js) })
}

func (p *natsPeer) take(ctx context.Context, w load.Work) (load.Figures, error) {
	if err := p.setup(ctx); err != nil {
		return load.Figures{}, err
	}
	if err := p.fill(ctx, w.Stock()); err != nil {
		return load.Figures{}, fmt.Errorf("fill: %w", err)
	}
	clients, err := p.clients(ctx, w.Clients, true)
	if err != nil {
		return load.Figures{}, err
	}
	defer closeAll(clients)
	for _, c := range clients {
		if c.messages, err = c.consumer.Messages(jetstream.PullMaxMessages(max(prefetch, 2*w.Batch))); err != nil {
			return load.Figures{}, err
		}
	}
	var left atomic.Int64
	left.Store(int64(w.Stock()))
	return load.Run(ctx, w.Clients, w.Time, func(ctx context.Context, i int) (int, error) {
		if left.Add(int64(-w.Batch)) < 0 {
			return 0, load.ErrEmpty
		}
		return w.Batch, clients[i].take(ctx, w.Batch)
	})
}

// take gets n messages and has them acknowledged for sure: the server confirms
// each acknowledgement when it is replicated.
func (c *natsClient) take(ctx context.Context, n int) error {
	for range n {
		m, err := c.messages.Next(jetstream.NextMaxWait(emptyTime))
		if errors.Is(err, nats.ErrTimeout) {
			return load.ErrEmpty // the others have the rest
		}
		if err != nil {
			return err
		}
		if err := c.nc.PublishRequest(m.Reply(), c.inbox, []byte("+ACK")); err != nil {
			return err
		}
	}
	for range n {
		if _, err := c.acks.NextMsgWithContext(ctx); err != nil {
			return err
		}
	}
	return nil
}

func (p *natsPeer) wake(ctx context.Context, w load.Work) (load.Figures, error) {
	if err := p.setup(ctx); err != nil {
		return load.Figures{}, err
	}
	putters, err := p.clients(ctx, 1, false)
	if err != nil {
		return load.Figures{}, err
	}
	defer closeAll(putters)
	takers, err := p.clients(ctx, 1, true)
	if err != nil {
		return load.Figures{}, err
	}
	defer closeAll(takers)
	type arrival struct {
		at  time.Time
		err error
	}
	arrived := make(chan arrival)
	return load.Sample(ctx, w.Time, func(ctx context.Context) (time.Duration, error) {
		batch, err := takers[0].consumer.Fetch(1)
		if err != nil {
			return 0, err
		}
		go func() {
			m := <-batch.Messages()
			at := time.Now()
			if m == nil {
				arrived <- arrival{err: errors.Join(errors.New("no message came"), batch.Error())}
				return
			}
			arrived <- arrival{at, m.DoubleAck(ctx)}
		}()
		for waiting := 0; waiting == 0; {
			info, err := takers[0].consumer.Info(ctx)
			if err != nil {
				return 0, err
			}
			waiting = info.NumWaiting
		}
		begin := time.Now()
		if _, err := putters[0].js.Publish(ctx, subject, payload); err != nil {
			return 0, err
		}
		a := <-arrived
		return a.at.Sub(begin), a.err
	})
}

func (p *natsPeer) putter(ctx context.Context) (func(ctx context.Context) error, func(), error) {
	nc, err := p.dial("")
	if err != nil {
		return nil, nil, err
	}
	js, err := jetstream.New(nc)
	if err != nil {
		nc.Close()
		return nil, nil, err
	}
	return func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
		defer cancel()
		_, err := js.Publish(ctx, subject, payload, jetstream.WithRetryAttempts(0))
		return err
	}, nc.Close, nil
}

// names returns the servers' names in order.
func names(urls map[string]string) []string {
	var all []string
	for name := range urls {
		all = append(all, name)
	}
	slices.Sort(all)
	return all
}
