# docker build -t fastify-model-gateway .
# docker run --rm -e ADMIN_TOKEN -p 127.0.0.1:8080:8080 fastify-model-gateway

FROM node:26.10-slim AS build
WORKDIR /app
COPY package.json package-lock.json .npmrc ./
RUN npm ci
COPY . .
RUN npm run build

FROM node:26.10-slim AS modules
WORKDIR /app
COPY package.json package-lock.json .npmrc ./
RUN npm ci --omit=dev

FROM node:26.10-slim
WORKDIR /app
COPY --from=modules /app/node_modules ./node_modules
COPY --from=build /app/dist ./dist
COPY package.json LICENSE ./
# For what the gateway writes; ./gateway.yaml is read from /app too.
RUN mkdir data && chown node:node data
# Both win over the configuration file, so that the lines below stay true.
ENV NODE_ENV=production HOST=0.0.0.0 PORT=8080
USER node
EXPOSE 8080
HEALTHCHECK --interval=15s --timeout=3s --start-period=10s --retries=3 \
  CMD ["node", "-e", "fetch(`http://127.0.0.1:${process.env.PORT}/health`).then(({ ok }) => process.exit(ok ? 0 : 1), () => process.exit(1))"]
# node is the first process: SIGTERM reaches it without a shell or npm in between.
CMD ["node", "dist/server.js"]
