# The image holds one file. Use it as the first stage of your own image:
#   COPY --from=panzer /bin/panzer /bin/panzer
#   ENTRYPOINT ["panzer", "-n", "8", "-l", "8080", "--"]
#   CMD ["your-server"]
FROM rust:1-slim-bookworm AS build
WORKDIR /src
COPY Cargo.toml Cargo.lock ./
COPY scripts/build scripts/build
COPY src src
RUN arch=$(uname -m) && scripts/build "$arch" && mv dist/panzer* /panzer

FROM scratch
COPY --from=build /panzer /bin/panzer
ENTRYPOINT ["panzer", "-n", "8", "--"]
