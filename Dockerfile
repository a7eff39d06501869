# overlap as one static binary and nothing else. By itself it serves what is mounted at /srv;
# images of other servers take the binary from it and use it as their entrypoint:
#
#   COPY --from=overlap /usr/local/bin/overlap /usr/local/bin/overlap
#   ENTRYPOINT ["overlap", "run", "--"]
#   CMD ["your-server", "--port", "8080"]
#   HEALTHCHECK CMD ["overlap", "status"]

FROM golang:1.26 AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
RUN CGO_ENABLED=0 go build -trimpath -ldflags "-s -w" -o /overlap .

FROM scratch
COPY --from=build /overlap /usr/local/bin/overlap
# Not /, where serve would show /proc.
WORKDIR /srv
EXPOSE 8080
ENTRYPOINT ["overlap"]
CMD ["serve"]
