// A host of another language: asks for a guest's heartbeat over standard input, which is a connected socket.
package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"hvsock.test/heartbeat/pb/heartbeat"
	"hvsock.test/heartbeat/pb/negotiation"
)

const beats = 3

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run() error {
	connection, err := net.FileConn(os.Stdin)
	if err != nil {
		return err
	}
	dial := func(context.Context, string) (net.Conn, error) {
		taken := connection
		connection = nil
		if taken == nil {
			return nil, errors.New("the connection has ended")
		}
		return taken, nil
	}
	client, err := grpc.NewClient("passthrough:hvsock", grpc.WithContextDialer(dial),
		grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()

	negotiating, err := negotiation.NewNegotiationClient(client).Negotiate(ctx, &negotiation.Offer{Versions: []uint32{1, 2}})
	if err != nil {
		return err
	}
	accepted, err := negotiating.Recv()
	if err != nil {
		return err
	}
	fmt.Fprintf(os.Stderr, "version %d, ready %t\n", accepted.Version, accepted.Ready)

	exchange, err := heartbeat.NewHeartbeatClient(client).Beat(ctx)
	if err != nil {
		return err
	}
	for sequence := uint64(41); sequence < 41+beats; sequence++ {
		if err := exchange.Send(&heartbeat.Beat{Sequence: sequence}); err != nil {
			return err
		}
		pulse, err := exchange.Recv()
		if err != nil {
			return err
		}
		fmt.Fprintf(os.Stderr, "%d -> %d %s\n", sequence, pulse.Sequence, pulse.ApplicationState)
	}
	return exchange.CloseSend()
}
